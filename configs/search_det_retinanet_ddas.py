"""DDAS's two levels on RetinaNet with ResNet-50-FPN: whether to augment, and 28 atoms of our operations at levels 7 and 14.

Source: the levels and the starting probability are those of DDAS's ImageNet search (ICCV 2021, arXiv 2104.04282); that they
are searched on a detector is inferred from its abstract, its detection code was never released.
Command: tools/search_imagenet.sh --config configs/search_det_retinanet_ddas.py --data data/coco
Hardware: one GPU, or --gpus N. Hours: not measured by this project.
"""

_base_ = "search_det_retinanet.py"
method = "ddas"
precision = "float32"  # what is learned is the difference of two inner products of gradients
search = dict(_delete_=True, levels=(7, 14), draws_per_image=3, probability=0.35, probability_lr=0.02, val_batches=1,
              running_v=True)
policy_optimizer = dict(lr=0.05)
