"""RetinaNet, ResNet-50-FPN, 2x, on the backbone pretrained with DADA's policy.

Schedule: 24 epochs, the learning rate divided by 10 after 16 and 22.
Source: MMDetection's retinanet/retinanet_r50_fpn_2x_coco.py; nothing but the backbone's weights differs.
Command: python tools/train_det.py configs/retinanet_r50_dada_2x.py --data data/coco --gpus 8
Hardware: 8 GPUs, 2 images each; with another total batch the learning rate is scaled in proportion (to switch that off:
--cfg-options auto_scale_lr.enable=False). Hours: not measured by this project.
To expect on COCO val2017: box AP 37.4, MMDetection's published figure with torchvision's backbone (not
measured by this project).
"""

_base_ = ["mmdet::retinanet/retinanet_r50_fpn_2x_coco.py", "./_base_/dada_backbone.py"]

model = dict(backbone=dict(type="DADAResNet", init_cfg=dict(checkpoint=_base_.backbone)))
auto_scale_lr = dict(enable=True)
