"""Wide-ResNet-28-10 on SVHN, train and extra, as DADA's tables have it: 200 epochs, batch 1024, Cutout of 20 px.

Source: DADA's released code, fast-autoaugment/confs/wresnet28x10_svhn_b1024_test.yaml; the rest, the flip of the digits and
CIFAR's mean and std included, is that of cifar10_wrn40_2.py. --data is the folder with train_32x32.mat, extra_32x32.mat and
test_32x32.mat; --cfg-options data.extra=False trains on the 73,257 images of train_32x32.mat alone.
Command: tools/pretrain_r50.sh --config configs/svhn_wrn28_10.py --policy dada-svhn --data data/svhn
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 1.2 %, with Cutout alone 1.3 %, baseline 1.5 %.
"""

_base_ = "cifar10_wrn28_10.py"
kind = "svhn"
data = dict(root="data/svhn", extra=True)
cutout = 20
batch_size = 1024
optimizer = dict(lr=0.08)  # four times 0.02
auto_scale_lr = dict(base_batch_size=1024)
