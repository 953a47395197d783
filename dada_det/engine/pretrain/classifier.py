"""A classifier as mmengine trains it, in bfloat16 where asked, and its top-1 and top-5 accuracy.

Shapes: B images, H x W pixels, K classes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn import functional

from dada_det.errors import UserError
from dada_det.models.classifiers import build_classifier
from dada_det.models.darts import AUXILIARY_WEIGHT, SuperNet


@HOOKS.register_module()
class TellProgress(Hook):
    """Before each epoch tells a network that drops paths (models/darts.py) what share of the training is over."""

    def before_train_epoch(self, runner: Runner) -> None:
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if hasattr(model.network, "progress"):
            model.network.progress = runner.epoch / runner.max_epochs


@MODELS.register_module()
class Classifier(BaseModel):
    """build_classifier(**classifier) under a cross entropy with `label_smoothing`.

    Args:
        mixup: arguments of timm's Mixup (also CutMix), which then mixes every training batch; its draws are numpy's.
        bce_threshold: use timm's BinaryCrossEntropy instead of the cross entropy; targets above the threshold count as 1.
        channels_last: memory format of weights and images, the faster one for convolutions on tensor cores.

    If the network gives (logits, auxiliary logits) in training, AUXILIARY_WEIGHT times the cross entropy of the second is
    added.
    """

    def __init__(self, classifier: Mapping[str, Any], label_smoothing: float = 0.0, channels_last: bool = False,
                 data_preprocessor: dict[str, Any] | None = None, mixup: Mapping[str, Any] | None = None,
                 bce_threshold: float | None = None) -> None:
        super().__init__(data_preprocessor or {"type": "ImagePreprocessor"})
        self.network = build_classifier(**classifier)
        if isinstance(self.network, SuperNet):
            raise UserError("darts_supernet holds all architectures and runs one at a time, so it is not trained as it is; "
                            "search it with configs/search_daas_cifar10.py, and train what that finds with "
                            "tools/train_arch.py")
        self.channels_last = channels_last
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion: Callable[..., Tensor] = partial(functional.cross_entropy, label_smoothing=label_smoothing)
        self.mixup: Callable[..., tuple[Tensor, Tensor]] | None = None
        if mixup:
            from timm.data import Mixup
            from timm.loss import SoftTargetCrossEntropy

            self.mixup = Mixup(**mixup, label_smoothing=label_smoothing, num_classes=classifier["num_classes"])
            self.criterion = SoftTargetCrossEntropy()
        if bce_threshold is not None:
            from timm.loss import BinaryCrossEntropy

            self.criterion = BinaryCrossEntropy(smoothing=label_smoothing, target_threshold=bce_threshold)

    def init_weights(self) -> None:
        """Does nothing: the network has its weights, and mmengine would make timm's ResNets draw new ones."""

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        """images: float32 [B,3,H,W], normalised; labels: int64 [B], for mode "loss".

        mode "tensor": logits [B,K]; "predict": the same as a list of B tensors [K]; "loss": {"loss": scalar}.
        """
        if mode == "loss" and self.mixup is not None:
            images, labels = self.mixup(images, labels)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs = self.network(images)
        logits_BK, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        if mode == "loss":
            assert labels is not None
            losses = [self.criterion(one_BK, labels) for one_BK in (logits_BK, *auxiliary)]
            return {"loss": losses[0] + sum(AUXILIARY_WEIGHT * loss for loss in losses[1:])}
        return list(logits_BK) if mode == "predict" else logits_BK


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """bfloat16 autocast for the training passes; it has float32's range, so no loss scale, which waits for the GPU."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            yield


@METRICS.register_module()
class TopK(BaseMetric):
    """{"top1", "top5"}: the percentage of images whose class is the likeliest, or among the five likeliest."""

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Tensor]) -> None:
        logits_BK = torch.stack(list(data_samples))
        likeliest_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
        hits_B5 = likeliest_B5 == data_batch["label"].to(logits_BK.device)[:, None]
        self.results.append(torch.tensor([int(hits_B5[:, 0].sum()), int(hits_B5.sum()), len(hits_B5)]))

    def compute_metrics(self, results: Sequence[Tensor]) -> dict[str, float]:
        top1, top5, images = torch.stack(list(results)).sum(0).tolist()
        return {"top1": 100 * top1 / images, "top5": 100 * top5 / images}

    def evaluate(self, size: int) -> dict[str, float]:
        # The ranks see disjoint images, so sums suffice: mmengine would pass every prediction through pickled files.
        total = torch.stack(self.results).sum(0) if self.results else torch.zeros(3, dtype=torch.int64)
        all_reduce(total)
        self.results.clear()
        return self.compute_metrics([total])
