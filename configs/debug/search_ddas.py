"""DDAS's search in under a minute on 2 cores, on the demo's images when no --data is given.

It takes some hundred steps, where the paper's sizes take thousands: larger rates, and DADA's validation gradient (the mean
of its direction over steps, by both kinds of BatchNorm statistics, divided by the weights' curvature).
tools/bench/planted.py searches with this config.
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
search = dict(probability_lr=0.02, running_v=True)
policy_optimizer = dict(lr=0.05)
