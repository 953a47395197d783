"""ResNet-50 on ImageNet's 1,000 classes with a policy, the classic recipe: 100 epochs, batch 256, cosine.

Source: Bag of Tricks (He et al., CVPR 2019, arXiv:1812.01187): lr 0.1 at batch 256 and linear in the batch, 5 epochs of
warm-up, cosine, label smoothing 0.1. pretrain_r50_paper.py is the recipe of the paper's tables, pretrain_r50_modern.py has
as many epochs on smaller images.
Command: tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --data data/imagenet
Control: the same with --policy none (or random, trivial).
Hardware: one GPU, or eight with --gpus 8 --batch-size 2048. Hours: not run; 100 epochs are 128 million images, so 30 hours
at 1,200 images/s.
Number to expect: not run; published for 90 epochs with steps instead of the cosine and without label smoothing: top-1 76.4 %
(Goyal et al., arXiv:1706.02677, Table 1).
"""

kind = "imagenet"  # folders <class>/*, or Stanford Cars or FGVC-Aircraft; or cifar10, cifar100, svhn in their own files
data = dict(root="data/imagenet", val_root=None)
image_size = 224  # of the validation, and of the training crops at the end
mirror = None  # random flips: True, False, or None: as the policy's file says, and where it says nothing, flips
padding = None  # px of black on each side, as for CIFAR: crops are then cut from the image as it is, and not resized
train_size = None  # px: of the training crops, where it is not image_size
progressive_size = None  # px: the first epochs' crops; they grow in steps of 32 px and are image_size in the last quarter
batch_size = 256  # over all processes
accumulation = 1  # parts in which a batch is computed one after the other, where the memory is too small for a whole one
epochs = 100
seed = 0
policy_on = "workers"  # "device": the preprocessor applies the policy, batch by batch; the same images either way
color_jitter = dict()  # after the policy: torchvision's ColorJitter, dict(brightness=.., contrast=.., saturation=.., hue=..)
lighting = 0  # after the jitter: standard deviation of the noise along ImageNet's principal colours (AlexNet: 0.1)
cutout = None  # px: side of a square in each training image that is set to the mean colour, after everything else
weights = None  # what the network starts from: a file, or "timm"; then the next three are those of the weights
data_preprocessor = dict()  # mean and std of each channel, 0..255, where they are not ImageNet's
interpolation = None  # "bilinear" where nothing says otherwise, or "nearest", "bicubic", "lanczos"
crop_share = None  # of the side of a validation image that its central crop shows; 224 / 256 where nothing says otherwise
workers = None  # loader processes of each training process; None: its share of the cores, at most 16; one on the CPU
classifier = dict(name="resnet50")  # any of timm's; the detectors take those with feature maps at strides 4, 8, 16 and 32
optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
layer_decay = None  # each layer learns so many times as fast as the one after it (timm's, for fine-tuning); None: all alike
paramwise_cfg = dict()  # mmengine's: dict(norm_decay_mult=0.0) leaves normalisation layers without weight decay
auto_scale_lr = dict(enable=True, base_batch_size=256)  # optimizer.lr is for this batch and scales with --batch-size
warmup_epochs = 5  # at most a tenth of all
warmup_from = 0.0  # share of the learning rate that the warm-up starts from
lr_drops = None  # shares of the training after which the rate falls to a tenth; None: a cosine to zero
clip_grad = None  # norm that no update's gradient exceeds
label_smoothing = 0.1
mixup = dict()  # dict(mixup_alpha=0.1, cutmix_alpha=1.0): arguments of timm's Mixup, which mixes every batch
bce_threshold = None  # a number: timm's binary cross entropy, for which mixed targets above it count as 1
repeats = 1  # copies of each image in a batch (repeated augmentation); an epoch then sees a part of the images
ema = dict()  # dict(momentum=2e-4, update_buffers=True), mmengine's EMAHook: its average is validated, saved and exported
precision = "auto"  # bfloat16 on a GPU, float32 on the CPU; or "bfloat16", "float16" (with a loss scale), "float32"
channels_last = True
# compile = True, or a dict of torch.compile's arguments: mmengine's own key, and slow in the first steps
checkpoint = dict(keep=2, steps=1000)  # how many stay; after each epoch, and within one after every so many steps
vis_backends = ["LocalVisBackend"]  # and "TensorboardVisBackend", "WandbVisBackend", or dict(type=.., and its arguments)
