"""A search on RetinaNet with ResNet-50-FPN, whose own loss on validation images is the reward.

Source: inferred from DDAS's abstract (arXiv 2104.04282), which searches on a detector and whose detection code was never
released; that boxes follow geometry, from AutoAugment for detection (Zoph et al., arXiv 1906.11172). Space, distribution
and step are DADA's default (search_imagenet.py); for DDAS's two levels see search_det_retinanet_ddas.py.
Command: tools/search_imagenet.sh --config configs/search_det_retinanet.py --data data/coco
Another domain: --val-data FILE.json, a COCO file of the place where the detector will work, with the same categories.
Then: python tools/train_det.py configs/retinanet_r50_dada.py --policy work_dirs/search_det_retinanet/policy.json
Hardware: one GPU, or --gpus N. Hours: not measured by this project.
"""

_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "./_base_/search_detection.py"]

model = dict(backbone=dict(type="DADAResNet", init_cfg=dict(checkpoint=_base_.backbone)))
