"""ResNet-50 on ImageNet as DADA's tables have it: 270 epochs, batch 1024, steps, ColorJitter and Lighting after the policy.

Source: DADA (ECCV 2020) and its released code, fast-autoaugment/confs/resnet50_b1024_test.yaml with data.py of the same: SGD
with Nesterov's momentum, weight decay 1e-4, lr 0.2 warmed up to twice in 3 epochs, a tenth of it from epochs 90, 180 and 240
on. There crop and flip come first, then the policy, ColorJitter and Lighting. Ours differs in the crop's interpolation
(bilinear, not bicubic), in Lighting on uint8 pixels (rounded and clipped), and in bfloat16. The released code's warm-up
package counts the steps from the end of the warm-up (93, 183, 243); here they are where the paper has them.
Command: tools/pretrain_r50.sh --config configs/pretrain_r50_paper.py --policy dada-imagenet --data data/imagenet --gpus 8
Control: the same with --policy none (or random, trivial, or a searched policy.json).
Hardware: eight GPUs. Hours: not run; 270 epochs are 346 million images, so 10 hours at 1,200 images/s on each of eight.
Number to expect: not run; published: top-1 77.5 % with the policy, 76.3 % without (DADA's table: 22.5 and 23.7 wrong).
"""

_base_ = "pretrain_r50.py"
batch_size = 1024
epochs = 270
color_jitter = dict(brightness=0.4, contrast=0.4, saturation=0.4)
lighting = 0.1
optimizer = dict(lr=0.4)  # twice 0.2
auto_scale_lr = dict(base_batch_size=1024)
warmup_epochs = 3
warmup_from = 0.5
lr_drops = [90 / 270, 180 / 270, 240 / 270]
label_smoothing = 0.0
