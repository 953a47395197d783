"""Shake-Shake 26 2x96d on SVHN as DADA's tables have it: the recipe of svhn_wrn28_10.py, less weight decay.

Source: DADA's released code, fast-autoaugment/confs/shake26_2x96d_svhn_b1024_test.yaml.
Command: tools/pretrain_r50.sh --config configs/svhn_shake26_2x96d.py --policy dada-svhn --data data/svhn
Hardware: one GPU. Hours: not run.
Number to expect: not run by this project; published: test error 1.1 %, with Cutout alone 1.2 %, baseline 1.4 %.
"""

_base_ = "svhn_wrn28_10.py"
classifier = dict(name="shake_shake26_2x96d")
optimizer = dict(weight_decay=1.5e-4)
