"""The default search in under a minute on 2 cores, on the demo's images when no --data is given.

Command: tools/search_imagenet.sh --config configs/debug/search.py
"""

_base_ = "../search_imagenet.py"
data = dict(root="data/demo/imagenet", demo=True)
image_size = 32
batch_size = 48
epochs = 3
classifier = dict(name="convnet")
base_batch_size = 48
weights_optimizer = dict(lr=0.05)
checkpoint = dict(seconds=0)
