"""DAAS: cells and policy searched together on CIFAR-10, 25,000 images train and 25,000 validate. A RECONSTRUCTION.

Source: DAAS (arXiv:2109.15273), of which this project had the abstract and the introduction alone: single path by
Gumbel-softmax, policy gradient, both jointly, 97.91 % on CIFAR-10. Space, sizes and optimisers are DARTS's (Liu et al.,
ICLR 2019, Section 3.1): 8 cells of 4 nodes, 16 channels, eight operations, 50 epochs, batch 64, SGD 0.025 on a cosine with
decay 3e-4, Adam 3e-4 (0.5, 0.999) with decay 1e-3 for the architecture. Ours: the architecture learns by a score function of
pairs of paths, and after half of the epochs (tools/bench/planted_daas.py: with fewer the weights that all paths share rank
them wrongly). Nothing here was held against the paper's figures.
--data is the folder with CIFAR-10's binary files (data_batch_1.bin, ..).
Command: tools/search_imagenet.sh --config configs/search_daas_cifar10.py --data data/cifar10
Then: python tools/train_arch.py work_dirs/search_daas_cifar10/genotype.json \
          --policy work_dirs/search_daas_cifar10/policy.json --data data/cifar10
Hardware: one GPU. Hours: not measured by this project.
"""

_base_ = "search_cifar10.py"
method = "daas"
data = dict(images_per_class=5000)
classifier = dict(name="darts_supernet", channels=16, cells=8, nodes=4)
batch_size = 64
epochs = 50
search = dict(_delete_=True, warmup_epochs=25)
base_batch_size = 64
weights_optimizer = dict(lr=0.025, momentum=0.9, weight_decay=3e-4)
architecture_optimizer = dict(lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
