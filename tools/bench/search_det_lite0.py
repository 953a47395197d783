"""A search on a RetinaNet around EfficientNet-Lite0, whose weights natural.py gives (problem nuclei-stain).

Maps at strides 4, 8 and 16, anchors of 10 to 57 px, BatchNorm trained.
Source: MMDetection's _base_/models/retinanet_r50_fpn.py, narrow; the anchors of configs/debug/search_det.py.
"""

_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "../../configs/_base_/search_detection.py"]

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(_delete_=True, type="DADATimm", architecture="efficientnet_lite0", strides=(4, 8, 16),
                  init_cfg=dict(type="Pretrained", checkpoint="none")),
    neck=dict(in_channels=[24, 40, 112], out_channels=32, start_level=0, num_outs=3),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, anchor_generator=dict(
        strides=[4, 8, 16], octave_base_scale=2.5, scales_per_octave=2, ratios=[1.0])),
    test_cfg=dict(nms_pre=200))
image_size = 128
epochs = 3
# By SGD (lr 0.05) it finds nothing after three epochs, AP 0.0 on its own images; by AdamW 42.
weights_optimizer = dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=1e-4)
checkpoint = dict(seconds=60)
