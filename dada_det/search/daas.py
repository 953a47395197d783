"""DAAS (arXiv:2109.15273), architecture and policy searched together: a reconstruction from its abstract and introduction.

The paper has a single path, Gumbel-softmax to save memory, and a policy gradient for the augmentation; it learns both
jointly. We infer the rest: DARTS's cells, paths drawn by the Gumbel maximum, a score function of the validation loss of
pairs of paths for the architecture, and DADA's PolicyDistribution with the alignment reward. One step updates the weights
on the augmented training batch, the policy by score function with the mean of the batch's other rewards as its baseline,
and the architecture on the validation batch.

B images of a training batch, E edges of a cell, O operations of an edge, N sub-policies, P paths; 2 the cells, normal and
reduction. All passes of a step for weights and policy use one path: both gradients of a reward are for the same
parameters, one before and one after their update, and both ends of a difference are of one network. That path is drawn
uniformly (Guo et al., ECCV 2020): a path that is drawn more often is trained more, and would be preferred for that alone.
For the same reason the paths that the architecture learns from are drawn independently of it.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.augment.space import SearchSpace
from dada_det.devices import move
from dada_det.errors import UserError
from dada_det.models.darts import SuperNet
from dada_det.models.genotype import Genotype, discretise
from dada_det.search import alignment, estimators
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, draw_noise
from dada_det.search.ranks import mean_over_ranks, mean_weights
from dada_det.search.results import POLICY_SIZE, most_used, search_result, usage
from dada_det.search.step import (
    Algorithm,
    Batch,
    ParameterGroup,
    Provenance,
    ResultFiles,
    Step,
    augment,
    validation_gradient,
)

PATHS = 2  # a step compares the validation losses of so many paths; each is the other's baseline


@dataclass(frozen=True)
class DaasSettings:
    """The settings of a joint search; a config's `search` changes the one entry.

    Args:
        warmup_epochs: epochs that train the weights alone.
    """

    warmup_epochs: int = 1
    spread = 0.8  # of the magnitude's normal on its logit; neither this nor what follows is an entry
    ranges = "strength"
    draws_per_image = 1
    val_batches = 1
    val_every = 1
    running_v = False

    def __post_init__(self) -> None:
        """UserError for a value that does not exist."""
        if not isinstance(self.warmup_epochs, int) or self.warmup_epochs < 0:
            raise UserError(f"search.warmup_epochs is {self.warmup_epochs!r}; give a whole number of at least 0")


def daas_settings(**changes: object) -> DaasSettings:
    """The settings with warmup_epochs changed.

    Raises:
        UserError: there is another entry, or the value is no whole number.
    """
    unknown = [name for name in changes if name != "warmup_epochs"]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} for the method daas; entries: warmup_epochs")
    return DaasSettings(**changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class JointNoise:
    """The noise of B draws: that of their policies, and gumbel_BP2EO, which is the same in every row.

    The latter draws a path for the weights, and PATHS for the architecture.
    """

    policy: Noise
    gumbel_BP2EO: Tensor

    def __getitem__(self, index: slice | Tensor) -> "JointNoise":
        return JointNoise(self.policy[index], self.gumbel_BP2EO[index])

    def to(self, like: Tensor) -> "JointNoise":
        return JointNoise(self.policy.to(like), move(self.gumbel_BP2EO.to(like.dtype), like.device))


class Daas(Algorithm[JointNoise]):
    """The logits of the operations on the edges of a SuperNet, and a PolicyDistribution."""

    def __init__(self, space: SearchSpace, settings: DaasSettings, network: SuperNet) -> None:
        super().__init__()
        self.settings: DaasSettings = settings
        self.operations = network.operations
        self.distribution = PolicyDistribution(space, shared_by_operation="preferences", spread=settings.spread)
        self.architecture_2EO = nn.Parameter(torch.zeros(2, network.edges, len(self.operations)))
        self.provenance = {"method": "daas"}
        self.identity = {"method": "daas", "search": asdict(settings), "supernet": network.size,
                         "edges": list(self.operations), "operations": list(space.operations)}

    def groups(self) -> dict[str, list[ParameterGroup]]:
        return {"policy": [{"params": self.distribution.parameters()}],
                "architecture": [{"params": [self.architecture_2EO]}]}

    def draw_noise(self, n: int, generator: torch.Generator) -> JointNoise:
        policy = draw_noise(n, len(self.distribution.space), generator)
        uniform_P2EO = torch.rand(1 + PATHS, *self.architecture_2EO.shape, generator=generator, dtype=torch.float64)
        gumbel_P2EO = -(-uniform_P2EO.clamp(1e-12, 1 - 1e-12).log()).log()  # 0 and 1 have no finite logarithm
        return JointNoise(policy, gumbel_P2EO.expand(n, -1, -1, -1, -1))

    def paths(self, gumbel_P2EO: Tensor) -> Tensor:
        """Returns the operation that each path draws on each edge from the softmax, long [P,2,E] (Gumbel-max)."""
        return (self.architecture_2EO.detach().log_softmax(2) + gumbel_P2EO).argmax(3)

    def step(self, parts: Step, batch: Batch[JointNoise], zeta: float, epoch: int) -> dict[str, Tensor]:
        """Updates weights, policy and architecture once each, in this order; in warm-up the weights alone."""
        network, learn = parts.network, epoch >= self.settings.warmup_epochs
        assert isinstance(network, SuperNet)
        noise = batch.noise.policy
        sample = self.distribution.sample(noise)
        draws = self.distribution.space.draws(sample.c_B, sample.b_B2, sample.magnitudes_B2, noise.signs_B2,
                                              noise.centers_B22)
        images, targets = augment(parts, batch.images_BCHW, batch.targets_B, draws)
        own_2EO, *others = batch.common_noise.gumbel_BP2EO[0]
        with network.on(own_2EO.argmax(2).tolist()):
            gradient, losses_B = alignment.training_gradient(network, images, targets, parts.low)
            weights = alignment.weights_of(network)
            before = {name: weight.clone() for name, weight in weights.items()} if learn else {}
            parts.update_weights(mean_weights(gradient))
            if not learn:
                return {"loss": losses_B.mean()}
            v = validation_gradient(parts, weights, batch)
            rewards_B = alignment.rewards(network, before, v, images, targets,
                                          losses_B=losses_B if parts.low is None else None)
        advantages_B = estimators.less_mean_of_others(rewards_B)
        spread = mean_over_ranks([advantages_B.square().mean()])[0].sqrt()
        self.distribution.zero_grad()
        gradients = estimators.marginal_score(
            advantages_B / (spread + 1e-12), self.distribution.logits_N().detach(),
            self.distribution.flag_logits_N2().detach(), self.distribution.magnitude_logits_N2().detach(),
            self.settings.spread, self.distribution.pairs_N2, sample)
        self.distribution.backward(PolicyGradient(*mean_over_ranks(list(gradients))))
        parts.update("policy")
        self.update_architecture(parts, batch, self.paths(torch.stack(others)))
        return {"loss": losses_B.mean(), "spread": spread}

    @torch.no_grad()
    def update_architecture(self, parts: Step, batch: Batch[JointNoise], choices_P2E: Tensor) -> None:
        """Updates it by the score function of the validation losses of P paths, on the same images at the same weights."""
        assert isinstance(parts.network, SuperNet)
        images, weights, losses = parts.normalise(batch.val_images_VCHW), alignment.weights_of(parts.network), []
        for choices_2E in choices_P2E.tolist():
            with parts.network.on(choices_2E):
                losses.append(alignment.losses_at(parts.network, weights, images, batch.val_targets_V, parts.low).mean())
        (losses_P,) = mean_over_ranks([torch.stack(losses)])
        self.architecture_2EO.grad = path_score(losses_P, choices_P2E, self.architecture_2EO)
        parts.update("architecture")

    @torch.no_grad()
    def genotype(self, provenance: Provenance) -> Genotype:
        """Returns the cells found so far."""
        return discretise(self.architecture_2EO.double().softmax(2), self.operations, dict(provenance))

    def results(self, provenance: Provenance, optimizers: dict[str, torch.optim.Optimizer]) -> ResultFiles:
        """genotype.json; policy.json, the 25 sub-policies with the largest preference; search.json, all probabilities."""
        strengths = self.architecture_2EO.detach().double().softmax(2).tolist()
        return {"genotype.json": self.genotype(provenance).to_dict(),
                "policy.json": self.distribution.policy(POLICY_SIZE, provenance).to_dict(),
                "search.json": {**search_result(self.distribution, optimizers["policy"], provenance),
                                "architecture": {"operations": list(self.operations), "normal": strengths[0],
                                                 "reduction": strengths[1]}}}

    def closing(self, work_dir: str) -> str:
        n = len(self.distribution.space)
        return (f"the cells in {work_dir}/genotype.json, {min(POLICY_SIZE, n)} of {n} sub-policies in policy.json and all "
                f"probabilities in search.json beside it; {most_used(usage(self.distribution.table()))}")


def path_score(losses_P: Tensor, choices_P2E: Tensor, logits_2EO: Tensor) -> Tensor:
    """Returns an unbiased estimate of the gradient of E[loss] for the operations' logits [2,E,O], from P independent paths.

    The baseline of a loss is the mean of the others (Williams, 1992; Kool et al., 2019). Of two paths a and b that is
    (L_a - L_b) / 2 times the difference of their scores.
    """
    advantages_P = (losses_P - losses_P.mean()) / (len(losses_P) - 1)
    return torch.einsum("p,pceo->ceo", advantages_P, F.one_hot(choices_P2E, logits_2EO.shape[2]).to(losses_P.dtype))
