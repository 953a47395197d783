"""DDAS's search on reduced CIFAR-10 (4,000 images, half of them validate): two levels over 37 atoms.

The rates and the validation direction are those of search_ddas_imagenet.py; search_ddas_cifar10_paper.py has the paper's.

Source: DDAS (ICCV 2021, arXiv 2104.04282) and its released classification code. The paper's 52 atoms have Blur, Smooth and
two flips more, and level 0 of eleven operations, which is the image as it is; its crops have a Cutout of 16 px on top.
Command: tools/search_imagenet.sh --config configs/search_ddas_cifar10.py --data data/cifar10
Hardware: one GPU. Hours: not measured by this project (the paper: 0.15).
"""

_base_ = "search_cifar10.py"
method = "ddas"
operations = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "AutoContrast", "Invert", "Equalize", "Solarize",
              "Posterize", "Contrast", "Color", "Brightness", "Sharpness"]
batch_size = 32
base_batch_size = 32
weights_optimizer = dict(_delete_=True, lr=0.01)
precision = "float32"  # what is learned is the difference of two inner products of gradients
search = dict(_delete_=True, levels=(2, 10, 14), draws_per_image=3, probability=0.35, probability_lr=0.02, val_batches=8,
              running_v=True)
policy_optimizer = dict(lr=0.05, betas=(0.5, 0.999))
