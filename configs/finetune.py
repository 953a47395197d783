"""Fine-tuning on a few hundred to some ten thousand images of one's own, from pretrained weights: 30 epochs, AdamW, EMA.

Source: ConvNeXt's fine-tuning (Liu et al., CVPR 2022, arXiv:2201.03545, appendix A): AdamW, cosine, no Mixup, label
smoothing 0.1, 30 epochs, layer-wise decay of the rate, 0.7 to 0.9 (timm's param_groups_layer_decay). Ours: a batch of 32 and
a rate of 5e-4, ten times theirs, with weight decay 0.05 and clipped gradients, as a few hundred images make a few hundred
updates for their tens of thousands; and the average of the last quarter or so of the updates (EMA).
Command: tools/pretrain_r50.sh --config configs/finetune.py --weights FILE --policy work_dirs/search/policy.json --data DIR
(--weights timm where there is a network to download from; another network with --cfg-options classifier.name=NAME)
Control: the same with --policy trivial (or none).
Hardware: a few minutes on one GPU; docs/own-data.md has an example for a CPU.
"""

_base_ = "pretrain_r50.py"
weights = "timm"
batch_size = 32
epochs = 30
warmup_epochs = 3
optimizer = dict(_delete_=True, type="AdamW", lr=5e-4, weight_decay=0.05)
layer_decay = 0.75
auto_scale_lr = dict(base_batch_size=32)
clip_grad = 1.0
ema = dict(ema_type="MomentumAnnealingEMA", momentum=2e-3, gamma=4, update_buffers=True)
checkpoint = dict(keep=1)
