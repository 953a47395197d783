"""DDAS's search on 120 classes of ImageNet with the paper's rates, and the validation gradient of each step as it is.

Source: DDAS (ICCV 2021, arXiv 2104.04282) and its released classification code.
Command: tools/search_imagenet.sh --config configs/search_ddas_imagenet_paper.py --data data/imagenet
Hardware: one GPU. Hours: not measured by this project.
"""

_base_ = "search_ddas_imagenet.py"
data = dict(groups="none")  # the paper halves image by image
search = dict(probability_lr=1e-3, running_v=False)
policy_optimizer = dict(lr=3e-3)
