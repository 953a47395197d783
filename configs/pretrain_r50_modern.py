"""ResNet-50 on ImageNet in fewer pixels: 100 epochs, batch 1024, crops that grow from 160 to 224 px, cosine, EMA.

Source: progressive size and no weight decay on BatchNorm as FFCV's rn50_88_epochs.yaml (github.com/libffcv/ffcv-imagenet);
lr 0.5 at batch 1024, label smoothing 0.1 and the averaged weights as torchvision's references for ResNet-50's second weights
(their 0.99998 every 32 updates of 600 epochs, scaled to 100, is 2e-4 an update); without mixup, cutmix, erasing and
blurred pooling, so that the policy is the only augmentation. The crops have 72 % of the pixels of 100 epochs at 224 px.
Command: tools/pretrain_r50.sh --config configs/pretrain_r50_modern.py --policy work_dirs/search_imagenet/policy.json \\
    --data data/imagenet --gpus 8
Control: the same with --policy none (or random, trivial).
Hardware: eight GPUs, or one with --cfg-options accumulation=4. Hours: not run; 128 million images at 72 % of the pixels, so
2.7 hours at 1,200 images/s (of 224 px) on each of eight.
Number to expect: not run; published for FFCV's 88 epochs, which also have blurred pooling and mirror the test images: top-1
78.4 %.
"""

_base_ = "pretrain_r50.py"
progressive_size = 160
batch_size = 1024
optimizer = dict(lr=0.5, weight_decay=5e-5)
paramwise_cfg = dict(norm_decay_mult=0.0)
auto_scale_lr = dict(base_batch_size=1024)
# The weight of the newest weights falls as 25 / updates down to momentum, here at the end: shorter runs have an average too.
ema = dict(ema_type="MomentumAnnealingEMA", momentum=2e-4, gamma=25, update_buffers=True)
