"""PyramidNet-272 (alpha 200) with ShakeDrop on CIFAR-10 as DADA's tables have it: 1,800 epochs, batch 64, no warm-up.

Source: DADA's released code, fast-autoaugment/confs/pyramid272_cifar10_b64_test.yaml, run on eight GPUs; the rest is that of
cifar10_wrn40_2.py. ShakeDrop draws for each image whether it keeps the branch, the released code for each GPU's 8 images.
Command: tools/pretrain_r50.sh --config configs/cifar10_pyramidnet272.py --policy dada-cifar10 --data data/cifar10
Hardware: one GPU, or eight with --gpus 8. Hours: not run.
Number to expect: not run by this project; published: test error 1.7 %, with Cutout alone 2.3 %, baseline 2.7 %.
"""

_base_ = "cifar10_wrn40_2.py"
batch_size = 64
epochs = 1800
classifier = dict(name="pyramidnet272_a200_shakedrop")
optimizer = dict(lr=0.05, weight_decay=5e-5)
auto_scale_lr = dict(base_batch_size=64)
warmup_epochs = 0
