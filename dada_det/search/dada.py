"""DADA's search (ECCV 2020): what it learns, and its step as we do it (`default_step`) and as it is printed (`paper_step`).

B images of a training batch, D draws of each, V validation images, C channels, H height, W width, N sub-policies.
Upper problem: minimise L_val(w - zeta grad_w E_q[L_train(w, q)]); its gradient for the policy is -zeta grad E_q[R], so R
(dada_det.search.alignment) is made large. The paper's step takes grad L_val at the virtual weights, ours at w itself.
"""

from contextlib import nullcontext
from dataclasses import asdict

import torch
from torch import Tensor

from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import Draws
from dada_det.devices import tf32_arithmetic
from dada_det.search import alignment, estimators
from dada_det.search.alignment import Ends, LossNetwork, Targets
from dada_det.search.curvature import precondition
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, Sample, draw_noise
from dada_det.search.estimators import ControlVariate
from dada_det.search.ranks import mean_over_ranks, mean_weights, world
from dada_det.search.results import POLICY_SIZE, most_used, search_result, usage
from dada_det.search.settings import DadaSettings
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

CONTROL_VARIATE_LR = 5e-3  # the paper's rate for everything it gives to Adam
# Each operation occurs in 14 sub-policies, so what they share is learned this much faster than a sub-policy's own part. How
# an operation is used (probability, magnitude) is learned faster by as much than what is preferred: otherwise a sub-policy
# that holds a harmful operation is given up before the operation is switched off.
FASTER = 4.0


def rates(distribution: PolicyDistribution) -> list[ParameterGroup]:
    """Adam's parameter groups of a distribution; "lr_mult" is a group's rate over the policy's."""
    preferences_O = distribution.operation_preferences_O
    use_O = [p for p in (distribution.operation_flags_O, distribution.operation_magnitudes_O) if p is not None]
    return [{"params": [distribution.flags_N2, distribution.magnitudes_N2,
                        *([] if preferences_O is None else [preferences_O])]},
            {"params": [distribution.preferences_N], "lr_mult": 1.0 if preferences_O is None else 1 / FASTER},
            {"params": use_O, "lr_mult": FASTER}]


class Dada(Algorithm[Noise]):
    """A PolicyDistribution over the space's sub-policies; in paper mode with RELAX also its control variate."""

    def __init__(self, space: SearchSpace, settings: DadaSettings) -> None:
        super().__init__()
        self.settings: DadaSettings = settings
        paper = settings.mode == "paper"
        self.distribution = PolicyDistribution(space, unconstrained=not paper, spread=settings.spread,
                                               shared_by_operation="none" if paper else "all")
        self.control_variate = ControlVariate(len(space)) if paper and settings.estimator == "relax" else None
        self.provenance = {"method": "dada", "mode": settings.mode}
        self.identity = {"method": "dada", "search": asdict(settings), "operations": list(space.operations)}

    def groups(self) -> dict[str, list[ParameterGroup]]:
        groups = rates(self.distribution)
        if self.control_variate is not None:
            groups.append({"params": self.control_variate.parameters(), "lr": CONTROL_VARIATE_LR})
        return {"policy": groups}

    def draw_noise(self, n: int, generator: torch.Generator) -> Noise:
        return draw_noise(n, len(self.distribution.space), generator)

    def step(self, parts: Step, batch: Batch[Noise], zeta: float, epoch: int) -> dict[str, Tensor]:
        if self.settings.mode == "paper":
            return self.paper_step(parts, batch, zeta)
        return self.default_step(parts, batch, learn=epoch >= self.settings.warmup_epochs)

    def results(self, provenance: Provenance, optimizers: dict[str, torch.optim.Optimizer]) -> ResultFiles:
        """policy.json, the 25 sub-policies with the largest preference, and search.json, all of them."""
        return {"policy.json": self.distribution.policy(POLICY_SIZE, provenance).to_dict(),
                "search.json": search_result(self.distribution, optimizers["policy"], provenance)}

    def closing(self, work_dir: str) -> str:
        n = len(self.distribution.space)
        return (f"{min(POLICY_SIZE, n)} of {n} sub-policies in {work_dir}/policy.json, all in search.json beside it; "
                f"{most_used(usage(self.distribution.table()))}")

    def default_step(self, parts: Step, batch: Batch[Noise], learn: bool) -> dict[str, Tensor]:
        """One step with D draws of each image and a reward for each; without `learn` (warm-up) it updates the weights alone.

        The weights train on a mixture: the first `unaugmented` of the batch as they are, the others with their policies.
        Without the former, what an operation is worth vanishes as the weights learn it. All images get rewards, each with
        its policies. v is taken before the training pass, at weights to which a step has really led; a virtual step more
        would change its mean over ten passes little, and cost a copy of the weights.
        Returns what is logged: the loss, and the mean and spread of the advantages.
        """
        network, running = parts.network, parts.running
        assert running is not None
        weights = alignment.weights_of(network)
        v = validation_gradient(parts, weights, batch) if learn else {}
        sample = self.distribution.sample(batch.noise)
        drawn = self.drawn(parts, batch, sample) if learn else None
        mixture_BCHW, targets = self.mixture(parts, batch, sample, drawn)
        images = parts.normalise(mixture_BCHW)
        gradient, losses_B = alignment.training_gradient(network, images, targets, parts.low)
        gradient = mean_weights(gradient)
        running.squares.add(gradient, gradient)
        log = {"loss": losses_B.mean()}
        if not learn:
            parts.update_weights(gradient)
            return log
        ends = alignment.ends_consuming(weights, precondition(v, running.squares.means, gradient))
        parts.update_weights(gradient)  # the ends hold what the rewards need of w
        del gradient
        assert drawn is not None
        advantages = self.advantages(parts, ends, *drawn)
        mean, square = mean_over_ranks([advantages.mean(), advantages.square().mean()])
        spread = (square - mean.square()).clamp_min(0).sqrt()
        assert self.settings.spread is not None
        self.apply_gradient(parts, PolicyGradient(*estimators.marginal_score(
            advantages / (spread + 1e-12), self.distribution.logits_N().detach(),
            self.distribution.flag_logits_N2().detach(), self.distribution.magnitude_logits_N2().detach(),
            self.settings.spread, self.distribution.pairs_N2, sample)))
        return log | {"advantage": mean, "spread": spread}

    def unaugmented(self, n: int) -> int:
        """How many of this process's n images train unaugmented: its part of the first ones of the whole batch."""
        (rank, size), fraction = world(), self.settings.unaugmented
        return len(range(rank, min(round(fraction * n * size), n * size - (fraction < 1)), size))

    def drawn(self, parts: Step, batch: Batch[Noise], sample: Sample) -> tuple[Tensor, Targets]:
        """The images of the batch after each of their D draws, uint8 [D*B,C,H,W], and their targets."""
        d = self.settings.draws_per_image
        return parts.apply(batch.images_BCHW.repeat(d, 1, 1, 1), batch.targets_B.repeat(d),
                           self.draws(sample, batch.noise, d * len(batch.images_BCHW)), self.settings.ranges)

    def mixture(self, parts: Step, batch: Batch[Noise], sample: Sample,
                drawn: tuple[Tensor, Targets] | None) -> tuple[Tensor, Targets]:
        """What the weights train on, uint8 [B,C,H,W], and its targets; where the first draw of each image is made already
        (`drawn`), the policies are not applied to it a second time: that would be half of a step's augmentation."""
        n, count = len(batch.images_BCHW), self.unaugmented(len(batch.images_BCHW))
        if drawn is None:
            return parts.apply(batch.images_BCHW, batch.targets_B, self.draws(sample, batch.noise, n, count),
                               self.settings.ranges)
        images_BCHW, targets_B = drawn
        return (torch.cat([batch.images_BCHW[:count], images_BCHW[count:n]]),
                alignment.joined(batch.targets_B[:count], targets_B[count:n]))

    def advantages(self, parts: Step, ends: Ends, drawn_BCHW: Tensor, targets_B: Targets) -> Tensor:
        """The reward of each draw [D*B], of log(1 + loss), less the mean of the batch's other rewards.

        drawn_BCHW, targets_B: of `drawn`. BatchNorm uses its running statistics: those of the batch depend on the operations
        of all its images, of which no training and no later use holds so many at once. A classifier's rewards take TF32 on a
        GPU: of a trained ResNet-50 they are 1.3 % off, in float32 0.4 % (results/reward_error.json), and planted operations
        are found alike. A detector's are not measured and stay in float32. Leaves the network in train mode.
        """
        images = parts.normalise(drawn_BCHW)
        parts.network.eval()
        with nullcontext() if isinstance(parts.network, LossNetwork) else tf32_arithmetic():
            rewards = alignment.rewards_between(parts.network, ends, images, targets_B, log=True)
        parts.network.train()
        return estimators.less_mean_of_others(rewards)

    def paper_step(self, parts: Step, batch: Batch[Noise], zeta: float) -> dict[str, Tensor]:
        """The equations as printed: one draw a batch, w first, and the finite difference of the estimator itself (Eq. 19).

        The control variate does not depend on w, so it cancels in the difference: what remains is REINFORCE without a
        baseline. That is the paper's method, kept as it is to be compared with.
        """
        network = parts.network
        one = self.distribution.sample(batch.common_noise)
        n = len(batch.images_BCHW)
        sample = Sample(one.c_B.expand(n), *(drawn.expand(n, 2) for drawn in (one.b_B2, one.logit_m_B2, one.magnitudes_B2)))
        images, targets = augment(parts, batch.images_BCHW, batch.targets_B, self.draws(sample, batch.noise, n))
        gradient, losses_B = alignment.training_gradient(network, images, targets)
        parts.update_weights(mean_weights(gradient))

        weights = alignment.weights_of(network)
        own = mean_weights(alignment.gradient_at(network, weights, images, targets))
        virtual = alignment.step(weights, own, -zeta)
        v = mean_weights(alignment.gradient_at(network, virtual, parts.normalise(batch.val_images_VCHW),
                                               batch.val_targets_V))
        epsilon = alignment.RELATIVE_STEP / alignment.norm(v).clamp_min(1e-12)
        ends = []
        for sign in (1, -1):
            moved = alignment.step(weights, v, sign * epsilon)
            losses, pixels = alignment.losses_and_pixel_sums(network, moved, images, targets)
            loss, pixel = mean_over_ranks([losses.mean(), pixels.mean()])
            ends.append((*self.paper_estimate(loss[None], one, batch.common_noise), pixel))
        (above, variance_above, pixel_above), (below, variance_below, pixel_below) = ends
        logits, flags = ((a.detach() - b.detach()) / (2 * epsilon) for a, b in zip(above, below, strict=True))
        pixel = (pixel_above - pixel_below) / (2 * epsilon)
        magnitudes = estimators.straight_through_magnitude(pixel[None], one.c_B, one.b_B2, len(self.distribution.space))
        self.apply_gradient(parts, PolicyGradient(logits, flags, magnitudes), variance_above, variance_below)
        return {"loss": losses_B.mean()}

    def paper_estimate(self, losses_B: Tensor, sample: Sample, noise: Noise) -> tuple[estimators.Gradient, Tensor | None]:
        """The mean estimate for (logits [N], flag logits [N,2]), and the scalar that trains RELAX's control variate."""
        arguments = (losses_B, self.distribution.logits_N(), self.distribution.flag_logits_N2(), sample.c_B, sample.b_B2)
        variance = None
        if self.control_variate is not None:
            gradient = estimators.relax(*arguments, noise, self.settings.temperature, self.control_variate)
            variance = estimators.squared_norm(gradient)
        elif self.settings.estimator == "gumbel":
            gradient = estimators.gumbel_softmax(*arguments, noise, self.settings.temperature)
        else:
            gradient = estimators.score_function(*arguments)
        return (gradient[0].detach().mean(0), gradient[1].detach().mean(0)), variance

    def draws(self, sample: Sample, noise: Noise, n: int, unaugmented: int = 0) -> Draws:
        """What the first n images get; the first `unaugmented` of them stay as they are."""
        flags_B2 = sample.b_B2[:n].clone()
        flags_B2[:unaugmented] = False
        return self.distribution.space.draws(sample.c_B[:n], flags_B2, sample.magnitudes_B2[:n], noise.signs_B2[:n],
                                             noise.centers_B22[:n])

    def apply_gradient(self, parts: Step, gradient: PolicyGradient, *variances: Tensor | None) -> None:
        """Puts -gradient into the policy's .grad and the variances' into the control variate's, then updates both."""
        self.zero_grad()
        self.distribution.backward(PolicyGradient(*mean_over_ranks([gradient.logits_N, gradient.flag_logits_N2,
                                                                    gradient.magnitudes_N2])))
        if self.control_variate is not None:
            for variance in variances:
                if variance is not None:
                    variance.backward()
            parameters = list(self.control_variate.parameters())
            means = mean_over_ranks([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
            for parameter, mean in zip(parameters, means, strict=True):
                parameter.grad = mean
        parts.update("policy")
        self.distribution.clamp_()
