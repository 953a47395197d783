"""The model that a search's Runner holds: a network, an algorithm, and the parts of the step that trains both."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from dada_det import __version__
from dada_det.devices import float32_arithmetic
from dada_det.engine.search.problem import Problem, search_device
from dada_det.files import write_json
from dada_det.search.alignment import Weights, trainable
from dada_det.search.curvature import RunningDirection
from dada_det.search.ranks import mean_over_ranks, world
from dada_det.search.step import Algorithm, Apply, Batch, Step, apply_to_images


class Searcher(BaseModel):
    """A network and what an algorithm learns, trained together: the optimiser `weights`, and one a name of its groups.

    Args:
        network: takes normalised images [B,3,H,W] and gives logits [B,K], or is a LossNetwork.
        mean, std: of the RGB channels, in 0..255.
        low: torch.bfloat16 runs the training and the validation pass under autocast, never the rewards.
        apply: how a policy acts on images and their targets.
    """

    def __init__(self, network: nn.Module, algorithm: Algorithm, mean: Sequence[float], std: Sequence[float],
                 low: torch.dtype | None = None, apply: Apply = apply_to_images) -> None:
        super().__init__()
        self.network, self.algorithm, self.low, self.apply_policies = network, algorithm, low, apply
        self.running = RunningDirection(network) if algorithm.settings.running_v else None
        self.mean_C11: Tensor
        self.std_C11: Tensor
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images as the network takes them; on a GPU channels_last, as tensor cores want them."""
        memory_format = torch.channels_last if images_BCHW.is_cuda else torch.preserve_format
        return (images_BCHW.to(self.mean_C11.dtype, memory_format=memory_format) - self.mean_C11) / self.std_C11

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Tensor:
        """What the network makes of uint8 images; the Runner never asks for losses here, `search_step` has them."""
        return self.network(self.normalise(inputs))

    def search_step(self, batch: Batch, optimizers: OptimWrapperDict, epoch: int) -> dict[str, Tensor]:
        """One step of the search; returns what is logged.

        It computes in float32 where it is not `low`; on a GPU an algorithm may ask for TF32 in a pass, as DADA does for a
        classifier's rewards.
        """
        weights = optimizers["weights"]
        batch = replace(batch, noise=batch.noise.to(self.mean_C11), common_noise=batch.common_noise.to(self.mean_C11))

        def update_weights(gradient: Weights) -> None:
            for name, parameter in trainable(self.network).items():
                parameter.grad = gradient[name]
            weights.step()
            weights.zero_grad()

        def update(name: str) -> None:
            optimizers[name].step()
            optimizers[name].zero_grad()

        parts = Step(self.network, self.algorithm.settings, self.normalise, update_weights, update, self.apply_policies,
                     self.low, self.running)
        # Dropout draws from torch's global generator, which no checkpoint keeps.
        seeding = self.network.register_forward_pre_hook(lambda *_: torch.manual_seed(batch.network_seed) and None)
        try:
            with float32_arithmetic():
                log = self.algorithm.step(parts, batch, zeta=weights.get_lr()["lr"][0], epoch=epoch)
        finally:
            seeding.remove()
        average_buffers(self.network)
        return log


def build_searcher(config: Config, problem: Problem, network: nn.Module, algorithm: Algorithm,
                   device: torch.device | None = None) -> Searcher:
    """The Searcher of a config on `device` (default: search_device()), as the stage runs it.

    On a GPU it trains and validates in config.precision, and every pass is channels_last.
    """
    device = device or search_device()
    low = torch.bfloat16 if config.precision == "bfloat16" and device.type == "cuda" else None
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Searcher(network, algorithm, problem.mean, problem.std, low, problem.apply).to(device)


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Sets BatchNorm's running statistics to their mean over the processes.

    Otherwise each process would reward by other statistics, and a resumed search by those of the first process alone.
    """
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for own, mean in zip(buffers, mean_over_ranks(buffers), strict=True):
        own.copy_(mean)


@HOOKS.register_module()
class WritePolicy(Hook):
    """After every epoch, and at the end, it writes the files of the algorithm's results, each whole.

    At the end, because a search that is resumed after its last epoch has none left, and may have a trial now or none.

    Args:
        mirror: whether the search flips images, which the policies say.
        proposal: write policy.json as proposal.json, because a trial decides later what is handed over.
    """

    def __init__(self, provenance: dict, mirror: bool, proposal: bool = False) -> None:
        self.provenance, self.mirror, self.proposal = provenance, mirror, proposal

    def after_train_epoch(self, runner: Runner) -> None:
        runner.model.algorithm.after_epoch(runner.epoch)
        self.write(runner, runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        self.write(runner, runner.epoch)

    def write(self, runner: Runner, epochs: int) -> None:
        """Writes what the algorithm has found in `epochs` epochs; of several processes the first writes."""
        if world()[0] != 0:
            return
        algorithm: Algorithm = runner.model.algorithm
        provenance = {**self.provenance, "epoch": epochs, "version": __version__}
        optimizers = {name: wrapper.optimizer for name, wrapper in runner.optim_wrapper.items()}
        for name, content in algorithm.results(provenance, optimizers).items():
            if name in ("policy.json", "schedule.json"):
                content["mirror"] = self.mirror
            name = "proposal.json" if self.proposal and name == "policy.json" else name
            write_json(f"{runner.work_dir}/{name}", content)
