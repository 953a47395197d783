"""DADA's search on 120 classes of ImageNet, 50 images each (6,000 in all; half of them validate): the default mode.

Source: DADA (ECCV 2020), Section 4.1; the classes are those of Fast AutoAugment and DADA.
What differs from the paper, and why: docs/method.md.
Command: tools/search_imagenet.sh --data data/imagenet --work-dir work_dirs/search_imagenet
Hardware: one GPU. Hours: not measured by this project (the paper: 1.3 on a Titan XP).
"""

kind = "imagenet"
data = dict(root="data/imagenet", val_root=None, subset="imagenet120", subset_images=50, images_per_class=None,
            groups="auto")  # which images stay in one half: auto, none, or a regular expression over their paths
image_size = 224
mirror = True  # random flips; not for digits or letters
batch_size = 128  # over all processes
epochs = 20
seed = 0
classifier = dict(name="resnet50")
search = dict(mode="default")
base_batch_size = 128  # weights_optimizer.lr is for this batch and scales with --batch-size
weights_optimizer = dict(lr=0.1, momentum=0.9, weight_decay=2e-4)
clip_grad = 5.0
precision = "bfloat16"  # of the training and validation passes on a GPU; rewards take TF32 there, and the CPU float32
policy_optimizer = dict(lr=None, betas=(0.5, 0.999))  # lr None: 0.02, and 5e-3 with search.mode="paper"
checkpoint = dict(seconds=60)  # after the first and last epoch, and after one that ends 60 s after the last checkpoint
