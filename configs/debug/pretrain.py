"""ResNet-50 in under a minute on 2 cores, on the demo's images when no --data is given.

Command: tools/pretrain_r50.sh --config configs/debug/pretrain.py --policy dada-imagenet
"""

_base_ = "../pretrain_r50.py"
data = dict(root="data/demo/imagenet", demo=True)
image_size = 48
batch_size = 32
epochs = 1
auto_scale_lr = dict(base_batch_size=32)
optimizer = dict(lr=0.05)
