"""ResNet-50 on ImageNet's 1,000 classes with a policy, the classic recipe: 100 epochs, batch 256, cosine.

Source: Bag of Tricks (He et al., CVPR 2019, arXiv:1812.01187): lr 0.1 at batch 256 and linear in the batch, 5 epochs of
warm-up, cosine, label smoothing 0.1. The paper's tables (DADA, ECCV 2020) train 270 epochs: --epochs 270.
Command: tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --data data/imagenet
Hardware: one GPU, or eight with --gpus 8 --batch-size 2048. Hours: not measured by this project; 100 epochs are 128
million images, so 30 hours at 1,200 images/s.
Number to expect: top-1 76 to 78 %; not measured by this project.
"""

data = dict(root="data/imagenet", val_root=None)
image_size = 224
batch_size = 256  # over all processes
epochs = 100
seed = 0
policy_on = "workers"  # "device": the preprocessor applies the policy, batch by batch; the same images either way
workers = None  # loader processes of each training process; None: its share of the cores, at most 16; one on the CPU
classifier = dict(name="resnet50")  # any of timm's; r50.pth is written for resnet50 only
base_batch_size = 256  # optimizer.lr is for this batch and scales with --batch-size
optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
warmup_epochs = 5  # at most a tenth of all
label_smoothing = 0.1
precision = "bfloat16"  # on a GPU; the CPU computes in float32
