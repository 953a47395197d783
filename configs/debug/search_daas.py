"""The joint search of cells and policy in two minutes on 2 cores, on the demo's images when no --data is given.

Command: tools/search_imagenet.sh --config configs/debug/search_daas.py
Then: python tools/train_arch.py work_dirs/search_daas/genotype.json --policy work_dirs/search_daas/policy.json \
          --data data/demo/imagenet --epochs 10 --channels 8 --layers 3 --image-size 32
"""

_base_ = "search.py"
method = "daas"
classifier = dict(name="darts_supernet", channels=4, cells=3, nodes=2,
                  operations=["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"])
search = dict(_delete_=True, warmup_epochs=1)
weights_optimizer = dict(lr=0.05)
architecture_optimizer = dict(lr=1e-2, betas=(0.5, 0.999), weight_decay=1e-3)
