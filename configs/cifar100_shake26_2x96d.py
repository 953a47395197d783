"""Shake-Shake 26 2x96d on CIFAR-100 as DADA's tables have it: the recipe of cifar10_shake26_2x96d.py, more weight decay.

Source: DADA's released code, fast-autoaugment/confs/shake26_2x96d_cifar100_b512_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar100_shake26_2x96d.py --policy dada-cifar100 --data data/cifar100
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 15.3 %, with Cutout alone 16.0 %, baseline 17.1 %.
"""

_base_ = "cifar10_shake26_2x96d.py"
kind = "cifar100"
data = dict(root="data/cifar100")
optimizer = dict(weight_decay=2.5e-3)
