"""The small rung: reduced CIFAR-10 (4,000 images, half of them validate), Wide-ResNet-40-2, the default mode.

Source: DADA (ECCV 2020), Section 4.1. --data is the folder with CIFAR-10's binary files (data_batch_1.bin, ..).
Command: tools/search_imagenet.sh --config configs/search_cifar10.py --data data/cifar10
Hardware: one GPU. Hours: not measured by this project (the paper: 0.1 on a Titan XP).
"""

_base_ = "search_imagenet.py"
kind = "cifar10"
data = dict(root="data/cifar10", val_root=None, subset=None, images_per_class=400)
image_size = 32
padding = 4  # of zeros around the image before the random crop
classifier = dict(name="wide_resnet40_2")
