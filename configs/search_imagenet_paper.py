"""The same search as the paper prints it: one draw a batch, Eq. 19's difference of RELAX, `autoaugment` ranges.

Source: DADA (ECCV 2020), Sections 3 and 4.1. search.estimator: relax | gumbel | score.
Command: tools/search_imagenet.sh --config configs/search_imagenet_paper.py --data data/imagenet
Hardware: one GPU. Hours: not measured by this project (the paper: 1.3 on a Titan XP).
"""

_base_ = "search_imagenet.py"
batch_size = 32
data = dict(groups="none")  # the paper halves image by image
search = dict(mode="paper", estimator="relax")
