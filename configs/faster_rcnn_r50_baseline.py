"""The twin of faster_rcnn_r50_dada.py: the same detector and recipe on the backbone pretrained without a policy.

Source: MMDetection's faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py; nothing but the backbone's weights differs.
Command: python tools/train_det.py configs/faster_rcnn_r50_baseline.py --data data/coco --gpus 8
Hardware: 8 GPUs, 2 images each (with another total batch add --auto-scale-lr). Hours: not measured by this project.
To expect on COCO val2017: box AP 37.4, MMDetection's published figure with torchvision's backbone (not
measured by this project).
"""

_base_ = "./faster_rcnn_r50_dada.py"

backbone = "work_dirs/pretrain_r50_none/r50.pth"
backbone_command = "tools/pretrain_r50.sh --policy none --work-dir work_dirs/pretrain_r50_none"
model = dict(backbone=dict(init_cfg=dict(checkpoint=backbone)))
