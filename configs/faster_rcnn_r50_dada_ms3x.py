"""Faster R-CNN, ResNet-50-FPN, multi-scale 3x, on the backbone pretrained with DADA's policy.

Schedule: 36 epochs (12 times three passes), the learning rate divided by 10 after 27 and 33; short side 640 to 800 px.
Source: MMDetection's faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py; nothing but the backbone's weights differs.
Command: python tools/train_det.py configs/faster_rcnn_r50_dada_ms3x.py --data data/coco --gpus 8
Hardware: 8 GPUs, 2 images each; with another total batch the learning rate is scaled in proportion (to switch that off:
--cfg-options auto_scale_lr.enable=False). Hours: not measured by this project.
To expect on COCO val2017: more than 2x's 38.4; MMDetection's model index lists no figure, and this project measured none.
"""

_base_ = ["mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py", "./_base_/dada_backbone.py"]

model = dict(backbone=dict(type="DADAResNet", init_cfg=dict(checkpoint=_base_.backbone)))
auto_scale_lr = dict(enable=True)
