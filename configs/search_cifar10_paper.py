"""Reduced CIFAR-10 as the paper prints it.

Source: DADA (ECCV 2020), Sections 3 and 4.1. search.estimator: relax | gumbel | score.
Command: tools/search_imagenet.sh --config configs/search_cifar10_paper.py --data data/cifar10
Hardware: one GPU. Hours: not measured by this project (the paper: 0.1 on a Titan XP).
"""

_base_ = "search_cifar10.py"
data = dict(groups="none")  # the paper halves image by image
search = dict(mode="paper", estimator="relax")
