"""DDAS's search in under a minute on 2 cores, on the demo's images when no --data is given.

What it learns with is search_ddas_imagenet.py's; tools/bench/planted.py searches with this config.
Command: tools/search_imagenet.sh --config configs/debug/search_ddas.py
"""

_base_ = "../search_ddas_imagenet.py"
data = dict(root="data/demo/imagenet", demo=True)
image_size = 32
batch_size = 24
epochs = 6
classifier = dict(name="convnet")
base_batch_size = 24
weights_optimizer = dict(lr=0.02)
checkpoint = dict(seconds=0)
