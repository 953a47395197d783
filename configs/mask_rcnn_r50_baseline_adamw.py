"""The twin of mask_rcnn_r50_dada_adamw.py: the same detector and recipe on the backbone pretrained without a policy.

Command: python tools/train_det.py configs/mask_rcnn_r50_baseline_adamw.py --data data/coco --gpus 8
Source, hardware and the figure to expect: as in mask_rcnn_r50_dada_adamw.py; nothing but the backbone's weights differs.
"""

_base_ = "./mask_rcnn_r50_dada_adamw.py"

backbone = "work_dirs/pretrain_r50_none/r50.pth"
backbone_command = "tools/pretrain_r50.sh --policy none --work-dir work_dirs/pretrain_r50_none"
model = dict(backbone=dict(init_cfg=dict(checkpoint=backbone)))
