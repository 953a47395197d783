"""A search on a small RetinaNet from random weights, with its trial, in about two minutes on 2 cores; without --data on the
demo's images.

ResNet-18 of a quarter of the width up to stride 16, BatchNorm trained; anchors of 10 to 57 px.
Source: MMDetection's _base_/models/retinanet_r50_fpn.py, narrow and shallow.
Command: tools/search_imagenet.sh --config configs/debug/search_det.py
"""

_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "../_base_/search_detection.py"]

model = dict(
    backbone=dict(depth=18, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2),
                  frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=16, start_level=0, num_outs=3),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1, anchor_generator=dict(
        strides=[4, 8, 16], octave_base_scale=2.5, scales_per_octave=2, ratios=[1.0])),
    test_cfg=dict(nms_pre=200))
data = dict(root="data/demo/coco", demo=True, images=40)
image_size = 128
epochs = 2
weights_optimizer = dict(lr=0.02)
checkpoint = dict(seconds=0)
