"""DADA's search (ECCV 2020): what it learns, and its step as we do it (`default_step`) and as it is printed (`paper_step`).

B images of a training batch, D draws of each, V validation images, C channels, H height, W width, N sub-policies.
Upper problem: minimise L_val(w - zeta grad_w E_q[L_train(w, q)]); its gradient for the policy is -zeta grad E_q[R], so R
(dada_det.search.alignment) is made large. The paper's step takes grad L_val at the virtual weights, ours at w itself.
"""

from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import Draws
from dada_det.search import alignment, estimators
from dada_det.search.alignment import Ends
from dada_det.search.curvature import precondition
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, Sample, draw_noise
from dada_det.search.estimators import ControlVariate, subtract_baseline
from dada_det.search.policy_gradient import estimate, policy_gradient
from dada_det.search.ranks import mean_over_ranks, mean_weights, world
from dada_det.search.results import POLICY_SIZE, most_used, search_result, usage
from dada_det.search.settings import Settings
from dada_det.search.step import Algorithm, Batch, Step, augment, validation_gradient

CONTROL_VARIATE_LR = 5e-3  # the paper's rate for everything it gives to Adam
# What is shared learns so much faster than a sub-policy's own part, since fourteen times the images speak of it; and how an
# operation is used (probability, magnitude) so much faster than what is preferred, or a sub-policy that holds a harmful
# operation is given up before the operation is switched off.
FASTER = 4.0


def rates(distribution: PolicyDistribution) -> list[dict[str, Any]]:
    """Adam's groups of a distribution's parameters, with their rates over the policy's ("lr_mult")."""
    shared = distribution.operation_preferences_O
    shared_use = [p for p in (distribution.operation_flags_O, distribution.operation_magnitudes_O) if p is not None]
    return [{"params": [distribution.flags_N2, distribution.magnitudes_N2, *([] if shared is None else [shared])]},
            {"params": [distribution.preferences_N], "lr_mult": 1.0 if shared is None else 1 / FASTER},
            {"params": shared_use, "lr_mult": FASTER}]


class Dada(Algorithm):
    """A PolicyDistribution over the space's sub-policies, and the control variate of its RELAX estimate."""

    def __init__(self, space: SearchSpace, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.distribution = PolicyDistribution(space, unconstrained=settings.unconstrained, shared=settings.shared,
                                               spread=settings.spread)
        self.control_variate = ControlVariate(len(space))
        # A copy of the distribution and a count of steps.
        self.averaged = AveragedModel(self.distribution) if settings.average else None
        self.provenance = {"method": "dada", "mode": settings.mode}
        self.identity = {"method": "dada", "search": asdict(settings), "operations": list(space.operations)}

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        return {"policy": [*rates(self.distribution),
                           {"params": self.control_variate.parameters(), "lr": CONTROL_VARIATE_LR}]}

    def draw_noise(self, n: int, generator: torch.Generator) -> Noise:
        return draw_noise(n, len(self.distribution.space), generator)

    def step(self, parts: Step, batch: Batch, zeta: float, epoch: int) -> dict[str, Tensor]:
        if self.settings.mode == "paper":
            return self.paper_step(parts, batch, zeta)
        return self.default_step(parts, batch, learn=epoch >= self.settings.warmup_epochs)

    def after_step(self, step: int, steps: int) -> None:
        """Adds the distribution's parameters to their mean, if the step is one of the last."""
        if self.averaged is not None and steps - step <= max(1, round(self.settings.average * steps)):
            self.averaged.update_parameters(self.distribution)

    @property
    def found(self) -> PolicyDistribution:
        """What the search has found so far: the mean of `settings.average`, or the last step's where that has not begun."""
        if self.averaged is not None and self.averaged.n_averaged > 0:
            return cast(PolicyDistribution, self.averaged.module)
        return self.distribution

    def results(self, provenance: dict[str, Any], optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
        """policy.json, the 25 sub-policies with the largest preference, and search.json, all of them."""
        averaged = 0 if self.averaged is None else int(self.averaged.n_averaged)
        return {"policy.json": self.found.policy(POLICY_SIZE, provenance).to_dict(),
                "search.json": search_result(self.found, self.distribution, optimizers["policy"], averaged, provenance)}

    def closing(self, work_dir: str) -> str:
        n = len(self.found.space)
        return (f"{min(POLICY_SIZE, n)} of {n} sub-policies in {work_dir}/policy.json, all in search.json beside it; "
                f"{most_used(usage(self.found.table()))}")

    def default_step(self, parts: Step, batch: Batch, learn: bool) -> dict[str, Tensor]:
        """One step with D draws of each image, a reward for each; without `learn` (warm-up) only the weights are updated.

        The weights see a mixture, the first `clean` of the images as they are and the others with their policies, so that
        what an operation is worth does not vanish as they learn it. The rewards are of all images with their policies.
        v is taken before the training pass, at weights to which a step has really led; a virtual one more would change it
        little beside its mean over ten passes, and cost a copy of the weights.
        Returns what is worth a log line: the loss, and the mean and spread of the advantages.
        """
        network, settings = parts.network, self.settings
        n = len(batch.images_BCHW)
        weights = alignment.weights_of(network)
        if learn and batch.validates:
            validation_gradient(parts, weights, batch)
        sample = self.distribution.sample(batch.noise)
        clean = slice(0, self.clean(n))
        mixture = augment(parts, batch.images_BCHW, batch.targets_B, self.draws(sample, batch.noise, n, clean))
        gradient, losses_B = alignment.training_gradient(network, *mixture, parts.low)
        gradient = mean_weights(gradient)
        log = {"loss": losses_B.mean()}
        if parts.squares is not None:
            parts.squares.add(gradient, gradient)
        if not learn:
            parts.update_weights(gradient)
            return log
        assert parts.v_mean is not None
        v = parts.v_mean.means
        if parts.squares is not None:
            v = precondition(v, parts.squares.means, gradient)
        ends = alignment.ends(weights, v)
        parts.update_weights(gradient)  # the ends hold what the rewards need of w
        del gradient
        rewards, pixel_sums = self.rewards(parts, ends, batch, sample)
        mean, square = mean_over_ranks([rewards.mean(), rewards.square().mean()])
        spread = (square - mean.square()).clamp_min(0).sqrt()
        scale = spread + 1e-12 if settings.normalise else torch.ones_like(spread)
        pixel_sums = None if pixel_sums is None else pixel_sums / scale
        self.apply_gradient(parts, *policy_gradient(settings, self.distribution, self.control_variate, rewards / scale,
                                                    pixel_sums, sample, batch.noise))
        return log | {"advantage": mean, "spread": spread}

    def clean(self, n: int) -> int:
        """How many of this process's n images stay as they are: its part of the first `clean` of the whole batch."""
        (rank, size), share = world(), self.settings.clean
        return len(range(rank, min(round(share * n * size), n * size - (share < 1)), size))

    def rewards(self, parts: Step, ends: Ends, batch: Batch, sample: Sample) -> tuple[Tensor, Tensor | None]:
        """(R_i less its baseline of each draw [D*B], its derivatives' sum over the pixels where magnitudes are not drawn).

        A batch holds all operations, which no training or later use does: by its own statistics an image is worth what it
        does to them too. Leaves the network in train mode.
        """
        network, settings, n = parts.network, self.settings, len(batch.images_BCHW)

        def images(clean: slice, draws: int) -> tuple[Tensor, Any]:
            return augment(parts, batch.images_BCHW.repeat(draws, 1, 1, 1), batch.targets_B.repeat(draws),
                           self.draws(sample, batch.noise, draws * n, clean))

        shown = images(slice(0), settings.draws)
        network.train(settings.reward_statistics == "batch")
        if settings.spread is None:
            rewards, pixel_sums = alignment.rewards_and_pixel_sums(network, ends, *shown, log=settings.log_losses)
        else:
            rewards, pixel_sums = alignment.rewards_between(network, ends, *shown, log=settings.log_losses), None
        if settings.baseline == "unaugmented":
            own = alignment.rewards_between(network, ends, *images(slice(0, n), 1), log=settings.log_losses)
            rewards = rewards - own.repeat(settings.draws)
        else:
            rewards = subtract_baseline(rewards, settings.baseline, settings.draws)
        network.train()
        return rewards, pixel_sums

    def paper_step(self, parts: Step, batch: Batch, zeta: float) -> dict[str, Tensor]:
        """The equations as printed: one draw a batch, w first, and the finite difference of the estimator itself (Eq. 19).

        The control variate does not depend on w, so it cancels in the difference: what remains is REINFORCE without a
        baseline. That is the paper's method, kept as it is to be compared with.
        """
        network = parts.network
        one = self.distribution.sample(batch.shared_noise)
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
            ends.append((*estimate(self.settings, self.distribution, self.control_variate, loss[None], one,
                                  batch.shared_noise), pixel))
        (above, variance_above, pixel_above), (below, variance_below, pixel_below) = ends
        logits, flags = ((a.detach() - b.detach()) / (2 * epsilon) for a, b in zip(above, below, strict=True))
        pixel = (pixel_above - pixel_below) / (2 * epsilon)
        magnitudes = estimators.straight_through_magnitude(pixel[None], one.c_B, one.b_B2, len(self.distribution.space))
        self.apply_gradient(parts, PolicyGradient(logits, flags, magnitudes), variance_above, variance_below)
        return {"loss": losses_B.mean()}

    def draws(self, sample: Sample, noise: Noise, n: int, clean: slice = slice(0)) -> Draws:
        """What the first n images get; those of the rows `clean` stay as they are."""
        flags_B2 = sample.b_B2[:n].clone()
        flags_B2[clean] = False
        return self.distribution.space.draws(sample.c_B[:n], flags_B2, sample.magnitudes_B2[:n], noise.signs_B2[:n],
                                             noise.centers_B22[:n])

    def apply_gradient(self, parts: Step, gradient: PolicyGradient, *variances: Tensor | None) -> None:
        """Puts -gradient into the policy's .grad and the variances' into the control variate's, then updates both."""
        self.distribution.zero_grad()
        self.control_variate.zero_grad()
        self.distribution.backward(PolicyGradient(*mean_over_ranks([gradient.logits_N, gradient.flag_logits_N2,
                                                                    gradient.magnitudes_N2])))
        for variance in variances:
            if variance is not None:
                variance.backward()
        if self.settings.estimator == "relax":
            parameters = list(self.control_variate.parameters())
            means = mean_over_ranks([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
            for parameter, mean in zip(parameters, means, strict=True):
                parameter.grad = mean
        parts.update("policy")
        self.distribution.clamp_()
