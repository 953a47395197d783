"""Reduced SVHN (1,000 images, half of them validate), Wide-ResNet-28-10, the default mode.

Source: DADA (ECCV 2020), Section 4.1, and its released train_paper.sh: 100 images a class, batch 32, weight decay 1e-3.
Command: tools/search_imagenet.sh --config configs/search_svhn.py --data data/svhn
Hardware: one GPU. Hours: not measured by this project (the paper: 0.1 on a Titan XP).
"""

_base_ = "search_cifar10.py"
kind = "svhn"
data = dict(root="data/svhn", images_per_class=100)
mirror = False  # digits
batch_size = 32
classifier = dict(name="wide_resnet28_10")
weights_optimizer = dict(weight_decay=1e-3)
