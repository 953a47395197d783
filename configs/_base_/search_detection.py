"""What the searches on a detector share: 5,000 images of COCO at 640 px, half of which validate, and DADA's default."""

kind = "coco"
data = dict(root="data/coco", val_root=None, images=5000,  # 6 GB of memory, 12 GB for a moment at the start
            groups="auto")  # which images stay in one half: auto, none, or a regular expression over their file_name
image_size = 640  # of the longer side; a shorter one is padded to a square
masks = False
mirror = True  # random flips; not for letters or digits
batch_size = 16  # over all processes
epochs = 12
seed = 0
search = dict(mode="default")
base_batch_size = 16  # weights_optimizer.lr is for this batch and scales with --batch-size
weights_optimizer = dict(lr=0.01, momentum=0.9, weight_decay=1e-4)
clip_grad = 10.0
precision = "bfloat16"  # of backbone and neck in the passes with a gradient, on a GPU; all else computes in float32
policy_optimizer = dict(lr=None, betas=(0.5, 0.999))  # lr None: 0.02, and 5e-3 with search.mode="paper"

backbone = "work_dirs/pretrain_r50_none/r50.pth"
backbone_command = "tools/pretrain_r50.sh --policy none --work-dir work_dirs/pretrain_r50_none"
checkpoint = dict(seconds=60)
