"""PyramidNet-272 (alpha 200) with ShakeDrop on CIFAR-100 as DADA's tables have it: that of cifar10_pyramidnet272.py, half
the learning rate, ten times the weight decay.

Source: DADA's released code, fast-autoaugment/confs/pyramid272_cifar100_b64_test.yaml.
Command: tools/pretrain_r50.sh --config configs/cifar100_pyramidnet272.py --policy dada-cifar100 --data data/cifar100
Hardware: one GPU, or eight with --gpus 8. Hours: not run.
Number to expect: not run by this project; published: test error 11.2 %, with Cutout alone 12.2 %, baseline 14.0 %.
"""

_base_ = "cifar10_pyramidnet272.py"
kind = "cifar100"
data = dict(root="data/cifar100")
optimizer = dict(lr=0.025, weight_decay=5e-4)
