"""Wide-ResNet-40-2 on CIFAR-10 as DADA's tables have it: 200 epochs, batch 512, cosine, Cutout of 16 px after the policy.

Source: DADA (ECCV 2020) and its released code, fast-autoaugment/confs/wresnet40x2_cifar10_b512_test.yaml with data.py and
train.py of the same: SGD with Nesterov's momentum, weight decay 2e-4, lr 0.1 warmed up to four times in 5 epochs, gradients
clipped at norm 5; a crop of the image padded by 4 px, flip, policy, CIFAR's mean and std, Cutout. Ours differs in the
cosine, which ends at zero (theirs 5 epochs before that), in bfloat16 on a GPU, and in reporting the last epoch (their code
reports the best on the test images). --data is the folder with CIFAR-10's binary files (data_batch_1.bin, ..).
Command: tools/pretrain_r50.sh --config configs/cifar10_wrn40_2.py --policy dada-cifar10 --data data/cifar10
Control: the same with --policy none (the table's Cutout), and with --cfg-options cutout=None (its baseline); or random,
trivial.
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 3.6 %, with Cutout alone 4.1 %, baseline 5.3 %.
"""

_base_ = "pretrain_r50.py"
kind = "cifar10"
data = dict(root="data/cifar10")
image_size = 32
padding = 4
cutout = 16
data_preprocessor = dict(mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255])
batch_size = 512
epochs = 200
classifier = dict(name="wide_resnet40_2")
optimizer = dict(lr=0.4, weight_decay=2e-4)  # four times 0.1
auto_scale_lr = dict(base_batch_size=512)
warmup_from = 0.25
clip_grad = 5
label_smoothing = 0.0
