"""Looks for validation images that have siblings among the training images, by a network's features or by pixels."""

from collections.abc import Callable

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dada_det.data.groups import leak_found, leak_found_in_pixels
from dada_det.data.memory import MemoryImages, center_crop
from dada_det.models.darts import SuperNet
from dada_det.search.ranks import world

BATCH = 128
MOST = 5000  # images of a half that are compared


@HOOKS.register_module()
class LookForLeaks(Hook):
    """Prints one line after the last epoch if the halves, or training images and target, leak (groups.leak_found).

    The first of several processes looks. It does not look at a search on a detector, whose images have no class, at a
    SuperNet, which has no single forward pass, or where half of a target trains: to that half any of the other is near.
    """

    def after_train(self, runner: Runner) -> None:
        batches = runner.train_dataloader
        if runner.cfg.data.get("target_trains"):
            return
        if world()[0] > 0 or not isinstance(batches.train, MemoryImages) or isinstance(runner.model.network, SuperNet):
            return
        halves = []
        for half in (batches.train, batches.val):
            rows = torch.linspace(0, len(half) - 1, min(len(half), MOST)).long()
            images = center_crop(half.images_NCHW[rows], batches.image_size)
            features = features_of(runner.model.network, images, runner.model.normalise)
            if features is None:
                return
            halves.append((features, half.labels_N[rows].cpu()))
        (train, train_labels), (val, val_labels) = halves
        target = bool(runner.cfg.data.get("val_root"))
        if sentence := leak_found(train, val, train_labels, val_labels, target):
            print(f"search  {sentence}", flush=True)


def say_leak(train_NCHW: Tensor, val_MCHW: Tensor, train_labels_N: Tensor | None = None,
             val_labels_M: Tensor | None = None, target: bool = False) -> None:
    """Prints one line if images of one thing, judged by their pixels, stand in both parts (groups.leak_found_in_pixels); of
    each part at most MOST images are compared, of one class where there are no labels."""
    if world()[0] > 0:
        return
    ours, theirs = (torch.linspace(0, len(part) - 1, min(len(part), MOST)).long() for part in (train_NCHW, val_MCHW))
    our_labels, their_labels = (torch.zeros(len(rows)) if labels is None else labels[rows]
                                for labels, rows in ((train_labels_N, ours), (val_labels_M, theirs)))
    if leak := leak_found_in_pixels(train_NCHW[ours], val_MCHW[theirs], our_labels, their_labels, target):
        print(f"search  {leak}", flush=True)


@torch.no_grad()
def features_of(network: nn.Module, images_NCHW: Tensor, normalise: Callable[[Tensor], Tensor]) -> Tensor | None:
    """What reaches the network's last linear layer, [N,F] on the CPU; None where it has no such layer.

    The network predicts as in evaluation; its mode stays as it was.
    """
    last = next((module for module in reversed(list(network.modules())) if isinstance(module, nn.Linear)), None)
    if last is None:
        return None
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1).float().cpu()))
    training = network.training
    try:
        network.eval()
        for part in images_NCHW.split(BATCH):
            network(normalise(part))
    finally:
        hook.remove()
        network.train(training)
    return torch.cat(seen)
