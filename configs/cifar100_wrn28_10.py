"""Wide-ResNet-28-10 on CIFAR-100 as DADA's tables have it: the recipe of cifar100_wrn40_2.py.

Source: DADA's released code, fast-autoaugment/confs/wresnet28x10_cifar100_b512_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar100_wrn28_10.py --policy dada-cifar100 --data data/cifar100
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 17.5 %, with Cutout alone 18.4 %, baseline 18.8 %.
"""

_base_ = "cifar100_wrn40_2.py"
classifier = dict(name="wide_resnet28_10")
