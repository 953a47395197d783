"""RetinaNet, ResNet-50-FPN, small: the road in under a minute and a half on 2 cores.

Source: MMDetection's _base_/models/retinanet_r50_fpn.py with a narrow neck and head and smaller anchors.
Command: python tools/train_det.py configs/debug/retinanet.py
"""

_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "./_base_/detection.py"]

model = dict(
    backbone=dict(type="DADAResNet", frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint=_base_.backbone)),
    neck=dict(out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, anchor_generator=dict(octave_base_scale=3)),
    test_cfg=dict(nms_pre=200))

# One-stage training with focal loss starts slower than the two-stage detectors do.
iterations = 80
train_cfg = dict(max_iters=iterations, val_interval=iterations)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.02, by_epoch=False, begin=10, end=iterations),
]
default_hooks = dict(checkpoint=dict(interval=iterations))
