"""Faster R-CNN, ResNet-50-FPN, 1x with AdamW, on the backbone pretrained with DADA's policy.

Schedule: 12 epochs, the learning rate divided by 10 after 8 and 11.
Source: MMDetection's resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py; nothing but the weights differs. Beside
faster_rcnn_r50_dada.py nothing but the optimiser differs, so the two tell weights and optimiser apart, which MMDetection's
figures change together.
Command: python tools/train_det.py configs/faster_rcnn_r50_dada_adamw.py --data data/coco --gpus 8
Hardware: 8 GPUs, 2 images each; with another total batch the learning rate is scaled in proportion (to switch that off:
--cfg-options auto_scale_lr.enable=False). Hours: not measured by this project.
To expect on COCO val2017: box AP 40.8, MMDetection's published figure with the backbone of ResNet strikes back (A1, 600
epochs; not measured by this project).
"""

_base_ = ["mmdet::resnet_strikes_back/faster-rcnn_r50-rsb-pre_fpn_1x_coco.py", "./_base_/dada_backbone.py"]

model = dict(backbone=dict(
    type="DADAResNet", init_cfg=dict(_delete_=True, type="Pretrained", checkpoint=_base_.backbone)))
auto_scale_lr = dict(enable=True)
