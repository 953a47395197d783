"""Wide-ResNet-28-10 on CIFAR-10 as DADA's tables have it; cifar10_wrn40_2.py says what is common, and where ours differs.

Source: DADA's released code, fast-autoaugment/confs/wresnet28x10_cifar10_b512_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar10_wrn28_10.py --policy dada-cifar10 --data data/cifar10
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 2.7 %, with Cutout alone 3.1 %, baseline 3.9 %.
"""

_base_ = "cifar10_wrn40_2.py"
classifier = dict(name="wide_resnet28_10")
optimizer = dict(weight_decay=5e-4)
