"""Shake-Shake 26 2x32d on CIFAR-10 as DADA's tables have it: 1,800 epochs; the rest is that of cifar10_wrn40_2.py.

Source: DADA's released code, fast-autoaugment/confs/shake26_2x32d_cifar_b512_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar10_shake26_2x32d.py --policy dada-cifar10 --data data/cifar10
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 2.7 %, with Cutout alone 3.0 %, baseline 3.6 %.
"""

_base_ = "cifar10_wrn40_2.py"
epochs = 1800
classifier = dict(name="shake_shake26_2x32d")
optimizer = dict(lr=0.04, weight_decay=1e-3)  # four times 0.01
