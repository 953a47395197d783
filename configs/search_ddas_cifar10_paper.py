"""DDAS's search on reduced CIFAR-10 with the paper's rates, and the validation gradient of each step as it is.

Source: DDAS (ICCV 2021, arXiv 2104.04282) and its released classification code.
Command: tools/search_imagenet.sh --config configs/search_ddas_cifar10_paper.py --data data/cifar10
Hardware: one GPU. Hours: not measured by this project (the paper: 0.15).
"""

_base_ = "search_ddas_cifar10.py"
data = dict(groups="none")  # the paper halves image by image
search = dict(probability_lr=1e-3, running_v=False)
policy_optimizer = dict(lr=5e-3)
