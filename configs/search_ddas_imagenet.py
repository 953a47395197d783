"""DDAS's search on 120 classes of ImageNet, 70 images each: two levels over 28 atoms.

The rates and the validation direction (DADA's running_v) are those with which tools/bench/planted.py finds planted
operations in some hundred steps; at this size nobody has measured. search_ddas_imagenet_paper.py has the paper's.

Source: DDAS (ICCV 2021, arXiv 2104.04282) and its released classification code. The paper's 120 classes x (50 + 20)
images are 35 + 35 here, half of each class, and its 32 atoms have Blur, Smooth and two flips more.
Command: tools/search_imagenet.sh --config configs/search_ddas_imagenet.py --data data/imagenet
Hardware: one GPU. Hours: not measured by this project.
"""

_base_ = "search_imagenet.py"
method = "ddas"
data = dict(subset_images=70)
classifier = dict(name="resnet18")
batch_size = 64
epochs = 40
base_batch_size = 64
weights_optimizer = dict(lr=0.002, momentum=0.9, nesterov=True, weight_decay=1e-4)
precision = "float32"  # what is learned is the difference of two inner products of gradients
search = dict(_delete_=True, levels=(7, 14), draws_per_image=3, probability=0.35, probability_lr=0.02, val_batches=1,
              running_v=True)
policy_optimizer = dict(lr=0.05, betas=(0.5, 0.999))
