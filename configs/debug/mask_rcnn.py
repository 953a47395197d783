"""Mask R-CNN, ResNet-50-FPN, small: 64 RoIs and 200 proposals an image, a mask head of two convolutions.

Source: MMDetection's _base_/models/mask-rcnn_r50_fpn.py with a narrow neck and heads and smaller anchors.
Command: python tools/train_det.py configs/debug/mask_rcnn.py
"""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "./_base_/detection.py"]

proposals = dict(nms_pre=400, max_per_img=200)
model = dict(
    backbone=dict(type="DADAResNet", frozen_stages=-1, norm_eval=False, init_cfg=dict(checkpoint=_base_.backbone)),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[5])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64), mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2)),
    train_cfg=dict(rpn=dict(sampler=dict(num=64)), rpn_proposal=proposals, rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=proposals))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=_base_.size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator
