"""Shake-Shake 26 2x112d on CIFAR-10 as DADA's tables have it: the recipe of cifar10_shake26_2x32d.py, more weight decay.

Source: DADA's released code, fast-autoaugment/confs/shake26_2x112d_cifar_b512_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar10_shake26_2x112d.py --policy dada-cifar10 --data data/cifar10
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 2.0 %, with Cutout alone 2.6 %, baseline 2.8 %.
"""

_base_ = "cifar10_shake26_2x32d.py"
classifier = dict(name="shake_shake26_2x112d")
optimizer = dict(weight_decay=2e-3)
