"""The model that a search's Runner holds: a network, a distribution over policies, and the step that trains both."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dada_det import __version__
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.space import SearchSpace
from dada_det.files import write_json
from dada_det.search.alignment import Weights
from dada_det.search.curvature import SQUARES_DECAY, RunningMean
from dada_det.search.dada import Batch, Settings, Step, default_step, paper_step
from dada_det.search.distribution import PolicyDistribution
from dada_det.search.estimators import ControlVariate
from dada_det.search.ranks import world

POLICY_SIZE = 25  # sub-policies in the saved policy, as in the paper


class Searcher(BaseModel):
    """A classifier and a PolicyDistribution, trained together by two optimisers, `weights` and `policy`.

    Args:
        network: takes normalised images [B,3,H,W] and gives logits [B,K].
        mean, std: of the RGB channels, in 0..255.
        low: torch.bfloat16 runs the training and the validation pass under autocast; rewards stay in float32.
    """

    def __init__(self, network: nn.Module, space: SearchSpace, settings: Settings, mean: Sequence[float],
                 std: Sequence[float], low: torch.dtype | None = None) -> None:
        super().__init__()
        self.network, self.settings, self.low = network, settings, low
        self.distribution = PolicyDistribution(space, unconstrained=settings.unconstrained, shared=settings.shared,
                                               spread=settings.spread)
        self.control_variate = ControlVariate(len(space))
        self.squares = RunningMean(network, SQUARES_DECAY) if settings.preconditioned else None
        self.v_mean = RunningMean(network, settings.v_decay) if settings.mode == "default" else None
        # A copy of the distribution and a count of steps; part of the model, so that a checkpoint holds both.
        self.averaged = AveragedModel(self.distribution) if settings.average else None
        self.mean_C11: Tensor
        self.std_C11: Tensor
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images as the network takes them."""
        return (images_BCHW.to(self.mean_C11.dtype) - self.mean_C11) / self.std_C11

    def average(self, step: int, steps: int) -> None:
        """After step `step` (from 0) of `steps`: adds the policy's parameters to their mean, if it is one of the last."""
        if self.averaged is not None and steps - step <= max(1, round(self.settings.average * steps)):
            self.averaged.update_parameters(self.distribution)

    @property
    def found(self) -> PolicyDistribution:
        """What the search has found so far: the mean of `settings.average`, or the last step's where that has not begun."""
        if self.averaged is not None and self.averaged.n_averaged > 0:
            return cast(PolicyDistribution, self.averaged.module)
        return self.distribution

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor") -> Tensor:
        """Logits [B,K] of uint8 images; the Runner never asks for losses here, `search_step` has them."""
        return self.network(self.normalise(inputs))

    def search_step(self, batch: Batch, optimizers: OptimWrapperDict, epoch: int) -> dict[str, Tensor]:
        """One step of the search; returns what is logged."""
        weights, policy = optimizers["weights"], optimizers["policy"]
        batch = replace(batch, noise=batch.noise.to(self.mean_C11), shared_noise=batch.shared_noise.to(self.mean_C11))

        def update_weights(gradient: Weights) -> None:
            for name, parameter in self.network.named_parameters():
                parameter.grad = gradient[name]
            weights.step()
            weights.zero_grad()

        def update_policy() -> None:
            policy.step()
            policy.zero_grad()

        parts = Step(self.network, self.distribution, self.control_variate, self.settings, self.normalise,
                     update_weights, update_policy, self.low, self.squares, self.v_mean)
        zeta = weights.get_lr()["lr"][0]
        # Dropout draws from torch's global generator, which no checkpoint keeps.
        seeding = self.network.register_forward_pre_hook(lambda *_: torch.manual_seed(batch.network_seed) and None)
        try:
            if self.settings.mode == "paper":
                return paper_step(parts, batch, zeta)
            return default_step(parts, batch, zeta, learn=epoch >= self.settings.warmup_epochs)
        finally:
            seeding.remove()


@HOOKS.register_module()
class WritePolicy(Hook):
    """After every epoch: policy.json, the 25 sub-policies with the largest preference, and search.json, all of them.

    What is written is `Searcher.found`; after every step it is told how far the search has come.
    """

    def __init__(self, provenance: dict) -> None:
        self.provenance = provenance

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch | None = None,
                         outputs: dict | None = None) -> None:
        runner.model.average(runner.iter, runner.max_iters)

    def after_train_epoch(self, runner: Runner) -> None:
        if world()[0] != 0:
            return
        distribution = runner.model.found
        provenance = {**self.provenance, "epoch": runner.epoch + 1, "version": __version__}
        distribution.policy(POLICY_SIZE, provenance).save(f"{runner.work_dir}/policy.json")
        adam = runner.optim_wrapper["policy"].optimizer
        group, averaged = adam.param_groups[0], runner.model.averaged
        optimizer = {"steps": int(adam.state.get(runner.model.distribution.flags_N2, {}).get("step", 0)), "lr": group["lr"],
                     "betas": list(group["betas"]), "averaged": 0 if averaged is None else int(averaged.n_averaged),
                     "shared": distribution.operation_preferences_O is not None}
        table = distribution.table()
        use = usage(table)
        write_json(f"{runner.work_dir}/search.json", {
            "schema": 1, "ranges": distribution.space.ranges, "spread": distribution.spread,
            "operations": [{"name": name, "use": value} for name, value in use.items()],
            "optimizer": optimizer, "sub_policies": table, "provenance": provenance})


def usage(table: list[dict]) -> dict[str, float]:
    """How often each operation acts on an image drawn from the whole distribution, most used first.

    The sum over sub-policies of preference times the operation's probability; two operations an image at most.
    """
    use = dict.fromkeys(OPERATION_NAMES, 0.0)
    for entry in table:
        for operation in entry["operations"]:
            use[operation["name"]] += entry["preference"] * operation["probability"]
    return dict(sorted(use.items(), key=lambda item: -item[1]))
