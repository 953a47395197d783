"""Reduced CIFAR-100 (4,000 images, half of them validate), Wide-ResNet-40-2, the default mode.

Source: DADA (ECCV 2020), Section 4.1, and its released train_paper.sh: 40 images a class, weight decay 5e-4.
Command: tools/search_imagenet.sh --config configs/search_cifar100.py --data data/cifar100
Hardware: one GPU. Hours: not measured by this project (the paper: 0.2 on a Titan XP).
"""

_base_ = "search_cifar10.py"
kind = "cifar100"
data = dict(root="data/cifar100", images_per_class=40)
weights_optimizer = dict(weight_decay=5e-4)
