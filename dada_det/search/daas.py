"""DAAS (arXiv:2109.15273), architecture and policy searched together: a reconstruction from its abstract and introduction.

The paper's: a single path, Gumbel-softmax for the memory's sake, policy gradient for the augmentation, both jointly. Ours
(inferred): DARTS's cells, a hard sample with a straight-through gradient and a temperature that falls from 10 to 0.1, and
DADA's PolicyDistribution with the alignment reward. One step: the weights on the augmented training batch; the architecture
on the validation batch; the policy by score function, with the mean over the batch for baseline.

B images of a training batch, E edges of a cell, O operations of an edge, N sub-policies; 2 the cells, normal and reduction.
One path is drawn a step and is that of all its passes: the gradients whose inner product is the reward are of the same
weights, and both ends of a difference are of one network.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dada_det.augment.space import SearchSpace
from dada_det.errors import UserError
from dada_det.models.darts import GATES, SuperNet
from dada_det.models.genotype import Genotype, discretise
from dada_det.search import alignment, estimators
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, draw_noise
from dada_det.search.ranks import mean_over_ranks, mean_weights
from dada_det.search.results import POLICY_SIZE, most_used, search_result, usage
from dada_det.search.step import Algorithm, Batch, Step, augment, validation_gradient

FIRST_TEMPERATURE, LAST_TEMPERATURE = 10.0, 0.1


@dataclass(frozen=True)
class Settings:
    """What a joint search does; a config's `search` changes warmup_epochs.

    warmup_epochs: epochs that train the weights alone, on paths drawn with equal chances.
    """

    warmup_epochs: int = 1
    ranges: str = "strength"
    spread: float = 0.8  # of the magnitude's normal on its logit
    draws: int = 1
    val_batches: int = 1
    val_statistics: str = "batch"
    v_decay: float | None = None
    preconditioned: bool = False


def settings_for(**changes: object) -> Settings:
    """The settings with warmup_epochs changed; UserError for any other entry, and for no whole number."""
    unknown = [name for name in changes if name != "warmup_epochs"]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} for the method daas; entries: warmup_epochs")
    settings = Settings(**changes)  # type: ignore[arg-type]
    if not isinstance(settings.warmup_epochs, int) or settings.warmup_epochs < 0:
        raise UserError(f"search.warmup_epochs is {settings.warmup_epochs!r}; give a whole number of at least 0")
    return settings


@dataclass(frozen=True)
class JointNoise:
    """What B draws take from chance: their policies', and gumbel_B2EO, the path's, which is the same in every row."""

    policy: Noise
    gumbel_B2EO: Tensor

    def __getitem__(self, index: slice | Tensor) -> "JointNoise":
        return JointNoise(self.policy[index], self.gumbel_B2EO[index])

    def to(self, like: Tensor) -> "JointNoise":
        return JointNoise(self.policy.to(like), self.gumbel_B2EO.to(like))


class Daas(Algorithm):
    """The logits of the operations on the edges of a SuperNet, and a PolicyDistribution; a search of `epochs` epochs."""

    def __init__(self, space: SearchSpace, settings: Settings, network: SuperNet, epochs: int) -> None:
        super().__init__()
        self.settings, self.epochs, self.operations = settings, epochs, network.operations
        self.distribution = PolicyDistribution(space, spread=settings.spread)
        self.architecture_2EO = nn.Parameter(torch.zeros(*network.gates_2E.shape, len(self.operations)))
        self.provenance = {"method": "daas"}
        self.identity = (f"daas, {settings}, {network.size}, {'/'.join(self.operations)}, "
                         f"{len(space.operations)} operations {'/'.join(space.operations)}")

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        return {"policy": [{"params": self.distribution.parameters()}],
                "architecture": [{"params": [self.architecture_2EO]}]}

    def draw_noise(self, n: int, generator: torch.Generator) -> JointNoise:
        policy = draw_noise(n, len(self.distribution.space), generator)
        uniform_2EO = torch.rand(self.architecture_2EO.shape, generator=generator, dtype=torch.float64)
        gumbel_2EO = -(-uniform_2EO.clamp(1e-12, 1 - 1e-12).log()).log()  # 0 and 1 have no finite logarithm
        return JointNoise(policy, gumbel_2EO.expand(n, -1, -1, -1))

    def temperature(self, epoch: int) -> float:
        """From the first to the last, linearly over the epochs."""
        share = epoch / max(1, self.epochs - 1)
        return FIRST_TEMPERATURE + share * (LAST_TEMPERATURE - FIRST_TEMPERATURE)

    def path(self, gumbel_2EO: Tensor, temperature: float) -> tuple[list[list[int]], Tensor]:
        """(the drawn operation of each edge, its relaxed weight [2,E] with the graph to the architecture)."""
        z_2EO = self.architecture_2EO.log_softmax(2) + gumbel_2EO
        choices_2E = z_2EO.argmax(2)
        relaxed_2E = (z_2EO / temperature).softmax(2).gather(2, choices_2E[..., None]).squeeze(2)
        return choices_2E.tolist(), relaxed_2E

    def step(self, parts: Step, batch: Batch, zeta: float, epoch: int) -> dict[str, Tensor]:
        """Weights, architecture, policy, each once; in warm-up the weights alone."""
        network, learn = parts.network, epoch >= self.settings.warmup_epochs
        assert isinstance(network, SuperNet)
        choices_2E, relaxed_2E = self.path(batch.shared_noise.gumbel_B2EO[0], self.temperature(epoch))
        noise: Noise = batch.noise.policy
        sample = self.distribution.sample(noise)
        draws = self.distribution.space.draws(sample.c_B, sample.b_B2, sample.magnitudes_B2, noise.signs_B2,
                                              noise.centers_B22)
        images, targets = augment(parts, batch.images_BCHW, batch.targets_B, draws)
        with network.on(choices_2E):
            gradient, losses_B = alignment.training_gradient(network, images, targets, parts.low)
            weights = alignment.weights_of(network)
            before = {name: weight.clone() for name, weight in weights.items()} if learn else {}
            parts.update_weights(mean_weights(gradient))
            if not learn:
                return {"loss": losses_B.mean()}
            v = validation_gradient(parts, {**weights, GATES: network.gates_2E}, batch)
            self.update_architecture(parts, relaxed_2E, v.pop(GATES))
            (rewards_B,) = alignment.rewards(network, before, v, (images, targets),
                                             losses_B=losses_B if parts.low is None else None)
        advantages_B = estimators.subtract_baseline(rewards_B, "batch", 1)
        spread = mean_over_ranks([advantages_B.square().mean()])[0].sqrt()
        self.distribution.zero_grad()
        gradients = estimators.marginal_score(
            advantages_B / (spread + 1e-12), self.distribution.logits_N().detach(),
            self.distribution.flag_logits_N2().detach(), self.distribution.magnitude_logits_N2().detach(),
            self.settings.spread, self.distribution.pairs_N2, sample)
        self.distribution.backward(PolicyGradient(*mean_over_ranks(list(gradients))))
        parts.update("policy")
        return {"loss": losses_B.mean(), "spread": spread}

    def update_architecture(self, parts: Step, relaxed_2E: Tensor, gates_gradient_2E: Tensor) -> None:
        """Straight-through: the gradient for a gate, which is 1, stands for that of the drawn operation's relaxed weight."""
        (self.architecture_2EO.grad,) = torch.autograd.grad(relaxed_2E, self.architecture_2EO, gates_gradient_2E)
        parts.update("architecture")

    @torch.no_grad()
    def genotype(self, provenance: dict[str, Any]) -> Genotype:
        """The cells as they are found so far."""
        return discretise(self.architecture_2EO.double().softmax(2), self.operations, provenance)

    def results(self, provenance: dict[str, Any], optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """genotype.json; policy.json, the 25 sub-policies with the largest preference; search.json, all probabilities."""
        strengths = self.architecture_2EO.detach().double().softmax(2).tolist()
        return {"genotype.json": self.genotype(provenance).to_dict(),
                "policy.json": self.distribution.policy(POLICY_SIZE, provenance).to_dict(),
                "search.json": {**search_result(self.distribution, optimizers["policy"], self.distribution.flags_N2, 0,
                                                provenance),
                                "architecture": {"operations": list(self.operations), "normal": strengths[0],
                                                 "reduction": strengths[1]}}}

    def closing(self, work_dir: str) -> str:
        n = len(self.distribution.space)
        return (f"the cells in {work_dir}/genotype.json, {min(POLICY_SIZE, n)} of {n} sub-policies in policy.json and all "
                f"probabilities in search.json beside it; {most_used(usage(self.distribution.table()))}")
