"""The backbone of every `_dada` detector: the one pretrained with the searched policy, behind the load guard."""

_base_ = "./guarded_backbone.py"

backbone = "work_dirs/pretrain_r50/r50.pth"
backbone_command = (
    "tools/pretrain_r50.sh --policy work_dirs/search_imagenet/policy.json --work-dir work_dirs/pretrain_r50")
