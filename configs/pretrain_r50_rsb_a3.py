"""ResNet-50 on ImageNet as A3 of ResNet strikes back, the policy in the place of RandAugment: 100 epochs at 160 px.

Source: ResNet strikes back (Wightman et al., arXiv:2110.00476, Table 2) and its code, timm: LAMB, cosine after 5 epochs of
warm-up, Mixup and CutMix, binary cross entropy with targets above 0.2 as 1, bicubic, central crop of 0.95. There RandAugment
6/0.5 acts on each image where --policy does here. Ours differs in the cosine, which ends at zero, and in bfloat16.
Command: tools/pretrain_r50.sh --config configs/pretrain_r50_rsb_a3.py --policy work_dirs/search_imagenet/policy.json \\
    --data data/imagenet --gpus 8
Control: the same with --policy none (or rand, trivial).
Hardware: eight GPUs, or one with --cfg-options accumulation=8. Hours: not run.
Number to expect: not run; published for RandAugment: top-1 78.1 %.
"""

_base_ = "pretrain_r50_rsb_a2.py"
train_size = 160
epochs = 100
classifier = dict(_delete_=True, name="resnet50")
optimizer = dict(lr=8e-3)
repeats = 1
