"""Wide-ResNet-40-2 on CIFAR-100 as DADA's tables have it: the recipe of cifar10_wrn40_2.py, more weight decay.

Source: DADA's released code, fast-autoaugment/confs/wresnet40x2_cifar100_b512_test.yaml. --data is the folder with
CIFAR-100's binary files (train.bin, test.bin, fine_label_names.txt).
Command: tools/pretrain_r50.sh --config configs/cifar100_wrn40_2.py --policy dada-cifar100 --data data/cifar100
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 20.9 %, with Cutout alone 25.2 %, baseline 26.0 %.
"""

_base_ = "cifar10_wrn40_2.py"
kind = "cifar100"
data = dict(root="data/cifar100")
optimizer = dict(weight_decay=5e-4)
