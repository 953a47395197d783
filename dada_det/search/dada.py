"""One step of DADA's search (ECCV 2020), as we do it (`default_step`) and as it is printed (`paper_step`).

B images of a training batch, D draws of each, V validation images, C channels, H height, W width, N sub-policies.
Upper problem: minimise L_val(w - zeta grad_w E_q[L_train(w, q)]); its gradient for the policy is -zeta grad E_q[R], so R
(dada_det.search.alignment) is made large.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from dada_det.augment.transform import apply_draws
from dada_det.errors import UserError
from dada_det.search import alignment, estimators
from dada_det.search.alignment import Weights
from dada_det.search.curvature import RunningMean, precondition
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, Sample
from dada_det.search.estimators import ControlVariate
from dada_det.search.ranks import mean_over_ranks, mean_weights, world

ESTIMATORS = ("marginal", "score", "relax", "gumbel")
PAPER_ENTRIES = ["ranges", "estimator", "temperature"]  # all else is as printed
PAPER_ESTIMATORS = ("relax", "score", "gumbel")  # of a logit; "marginal" scores drawn magnitudes too
VAL_STATISTICS = ("batch", "running", "both")
RUNNING_WEIGHT = 0.5  # of the gradient by the running statistics where "both" are used; at 1 Color is lost to Contrast
BASELINES = ("unaugmented", "half", "second_draw", "batch", "none")


@dataclass(frozen=True)
class Settings:
    """What a search does; MODES names the two sets of them, a config's `search` changes single entries."""

    mode: str
    ranges: str  # of the magnitudes: "strength" | "autoaugment"
    unconstrained: bool  # logits, or numbers clamped to 0..1
    shared: bool  # preferences shared by all sub-policies that hold an operation
    spread: float | None  # of the magnitude's normal on its logit; None: the magnitude itself, straight-through (Eq. 10)
    draws: int  # of each image in a step
    baseline: str  # what is subtracted from R_i
    val_batches: int  # images of a validation batch over those of a training batch
    val_statistics: str  # BatchNorm's in the validation pass: its own "batch", "running" as in later use, or "both"
    normalise: bool  # divide the rewards by their spread
    v_decay: float  # of the running mean of the validation gradient's direction over steps; 0: this step's alone
    preconditioned: bool  # the validation gradient is divided by the weights' curvature (dada_det.search.curvature)
    warmup_epochs: int  # epochs that train the weights alone
    estimator: str
    temperature: float = 0.5
    entropy: float = 0.0  # coefficient of the entropy of p(sub-policy) beside rewards whose spread is 1
    average: float = 0.0  # share of the last steps whose mean parameters are the saved policy; 0: those of the last step


MODES = {
    "default": Settings(mode="default", ranges="strength", unconstrained=True, shared=True, spread=0.8, draws=1,
                        baseline="unaugmented", val_batches=1, val_statistics="both", normalise=True,
                        v_decay=0.9, preconditioned=True, warmup_epochs=1, estimator="marginal"),
    "paper": Settings(mode="paper", ranges="autoaugment", unconstrained=False, shared=False, spread=None, draws=1,
                      baseline="none", val_batches=1, val_statistics="batch", normalise=False,
                      v_decay=0.0, preconditioned=False, warmup_epochs=0, estimator="relax"),
}


def settings_for(mode: str = "default", **changes: object) -> Settings:
    """The settings of a mode with single entries changed; UserError for a mode, entry or value that does not exist."""
    if mode not in MODES:
        raise UserError(f"search has no mode {mode!r}; modes: {', '.join(MODES)}")
    known = PAPER_ENTRIES if mode == "paper" else DEFAULT_ENTRIES
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} in the mode {mode}; entries: {', '.join(known)}")
    settings = replace(MODES[mode], **changes)  # type: ignore[arg-type]
    for entry, value, choices in (("estimator", settings.estimator, PAPER_ESTIMATORS if mode == "paper" else ESTIMATORS),
                                  ("baseline", settings.baseline, BASELINES),
                                  ("val_statistics", settings.val_statistics, VAL_STATISTICS),
                                  ("ranges", settings.ranges, ("strength", "autoaugment"))):
        if value not in choices:
            raise UserError(f"search.{entry} is {value!r}; choose one of {', '.join(choices)}")
    for entry, least in (("draws", 1), ("val_batches", 1), ("warmup_epochs", 0)):
        value = getattr(settings, entry)
        if not isinstance(value, int) or value < least:
            raise UserError(f"search.{entry} is {value!r}; give a whole number of at least {least}")
    if not isinstance(settings.temperature, int | float) or not settings.temperature > 0:
        raise UserError(f"search.temperature is {settings.temperature!r}; give a number above 0")
    if settings.spread is not None and (not isinstance(settings.spread, int | float) or not settings.spread > 0):
        raise UserError(f"search.spread is {settings.spread!r}; give a number above 0, or None for straight-through")
    if not isinstance(settings.entropy, int | float) or not 0 <= settings.entropy < math.inf:
        raise UserError(f"search.entropy is {settings.entropy!r}; give a number of at least 0")
    if not isinstance(settings.v_decay, int | float) or not 0 <= settings.v_decay < 1:
        raise UserError(f"search.v_decay is {settings.v_decay!r}; give a number of at least 0 and below 1")
    if not isinstance(settings.average, int | float) or not 0 <= settings.average <= 1:
        raise UserError(f"search.average is {settings.average!r}; give a share from 0 to 1")
    if settings.spread is None and settings.estimator == "marginal":
        raise UserError("search.spread=None needs search.estimator score, relax or gumbel: marginal scores drawn strengths")
    if settings.baseline in ("second_draw", "half") and settings.draws < 2:
        raise UserError(f"search.baseline={settings.baseline!r} needs search.draws of at least 2")
    return settings


DEFAULT_ENTRIES = [field.name for field in fields(Settings) if field.name not in ("mode", "unconstrained")]


@dataclass(frozen=True)
class Batch:
    """What one step works on: uint8 images, labels, and the noise of its draws.

    noise has D * B rows, draw by draw; shared_noise one row, the same on all processes: in paper mode it draws the
    sub-policy of the whole batch, while signs and centres stay those of each image. network_seed is what a network with
    dropout draws from: every pass of the step from the same, so that a finite difference sees one network, not two.
    """

    images_BCHW: Tensor
    labels_B: Tensor
    val_images_VCHW: Tensor
    val_labels_V: Tensor
    noise: Noise
    shared_noise: Noise
    network_seed: int = 0


@dataclass(frozen=True)
class Step:
    """The parts that a step works with; the two updates are called in the order that the mode prescribes."""

    network: nn.Module
    distribution: PolicyDistribution
    control_variate: ControlVariate
    settings: Settings
    normalise: Callable[[Tensor], Tensor]  # uint8 images -> what the network takes
    update_weights: Callable[[Weights], None]  # takes the gradient of L_train
    update_policy: Callable[[], None]  # the gradients stand in the parameters' .grad
    low: torch.dtype | None = None  # torch.bfloat16: of the training and validation gradient; rewards stay in float32
    squares: RunningMean | None = None  # of L_train's gradient, where settings.preconditioned
    v_mean: RunningMean | None = None  # of the validation gradient's direction; in paper mode None


def default_step(parts: Step, batch: Batch, zeta: float, learn: bool) -> dict[str, Tensor]:
    """One step with a draw and a reward for every image; without `learn` (warm-up) only the weights are updated.

    Returns what is worth a log line: the loss, and the mean and spread of the advantages.
    """
    network, settings = parts.network, parts.settings
    n = len(batch.images_BCHW)
    sample = parts.distribution.sample(batch.noise)
    draws = settings.draws if learn else 1
    labels = batch.labels_B.repeat(draws)
    images = augment(parts, batch.images_BCHW.repeat(draws, 1, 1, 1), sample, batch.noise)
    gradient, losses_B = alignment.training_gradient(network, images[:n], labels[:n], parts.low)
    gradient = mean_weights(gradient)
    if parts.squares is not None:
        parts.squares.forget()
        parts.squares.add(gradient, gradient)
    log = {"loss": losses_B.mean()}
    if learn:
        weights = alignment.weights_of(network)
        virtual = alignment.step(weights, gradient, -zeta)
        v = validation_gradient(parts, virtual, batch)
        if parts.squares is not None:
            v = precondition(v, parts.squares.means, gradient, out=virtual)
        del virtual  # as large as the network, and the rewards need room for one more
        clean, pixel_sums = (parts.normalise(batch.images_BCHW), batch.labels_B), None
        against_clean = [clean] if settings.baseline == "unaugmented" else []
        if settings.spread is None:
            rewards, pixel_sums = alignment.rewards_and_pixel_sums(network, weights, v, images, labels)
            baselines = alignment.rewards(network, weights, v, *against_clean)
        else:
            # The training pass has left the losses at w, unless more was drawn than it saw or it ran in bfloat16.
            known_B = losses_B if draws == 1 and parts.low is None else None
            rewards, *baselines = alignment.rewards(network, weights, v, (images, labels), *against_clean, losses_B=known_B)
        rewards = rewards - baselines[0].repeat(draws) if baselines else subtract_baseline(rewards, settings.baseline, draws)
        mean, square = mean_over_ranks([rewards.mean(), rewards.square().mean()])
        spread = (square - mean.square()).clamp_min(0).sqrt()
        scale = spread + 1e-12 if settings.normalise else torch.ones_like(spread)
        pixel_sums = None if pixel_sums is None else pixel_sums / scale
        apply_policy_gradient(parts, *policy_gradient(parts, rewards / scale, pixel_sums, sample, batch.noise))
        log |= {"advantage": mean, "spread": spread}
    parts.update_weights(gradient)
    return log


def validation_gradient(parts: Step, weights: Weights, batch: Batch) -> Weights:
    """The running mean over steps of the direction of grad L_val at `weights`; leaves the network in train mode.

    BatchNorm by the statistics of the validation batch normalises a shift away that all its images share; by the running
    ones it sees little else. "both": a half of the images by each, brought to length 1 and RUNNING_WEIGHT.
    """
    assert parts.v_mean is not None
    statistics, n = parts.settings.val_statistics, len(batch.val_labels_V)
    half = max(1, n // 2) if statistics == "both" else n
    passes = {"batch": slice(0, half), "running": slice(n - half, n)}
    parts.v_mean.forget()
    for name in passes if statistics == "both" else [statistics]:
        parts.network.train(name == "batch")
        v = mean_weights(alignment.gradient_at(parts.network, weights, parts.normalise(batch.val_images_VCHW[passes[name]]),
                                               batch.val_labels_V[passes[name]], parts.low))
        weight = RUNNING_WEIGHT if statistics == "both" and name == "running" else 1.0
        parts.v_mean.add(v, weight / alignment.norm(v).clamp_min(1e-12))
    parts.network.train()
    return parts.v_mean.means


def paper_step(parts: Step, batch: Batch, zeta: float) -> dict[str, Tensor]:
    """The equations as printed: one draw a batch, w first, and the finite difference of the estimator itself (Eq. 19).

    The control variate does not depend on w, so it cancels in the difference: what remains is REINFORCE without a
    baseline. That is the paper's method, kept as it is to be compared with.
    """
    network = parts.network
    one = parts.distribution.sample(batch.shared_noise)
    n = len(batch.images_BCHW)
    sample = Sample(one.c_B.expand(n), one.b_B2.expand(n, 2), one.logit_m_B2.expand(n, 2), one.magnitudes_B2.expand(n, 2))
    images = augment(parts, batch.images_BCHW, sample, batch.noise)
    gradient, losses_B = alignment.training_gradient(network, images, batch.labels_B)
    parts.update_weights(mean_weights(gradient))

    weights = alignment.weights_of(network)
    own = mean_weights(alignment.gradient_at(network, weights, images, batch.labels_B))
    virtual = alignment.step(weights, own, -zeta)
    v = mean_weights(alignment.gradient_at(network, virtual, parts.normalise(batch.val_images_VCHW), batch.val_labels_V))
    epsilon = alignment.RELATIVE_STEP / alignment.norm(v).clamp_min(1e-12)
    ends = []
    for sign in (1, -1):
        moved = alignment.step(weights, v, sign * epsilon)
        losses, pixels = alignment.losses_and_pixel_sums(network, moved, images, batch.labels_B)
        loss, pixel = mean_over_ranks([losses.mean(), pixels.mean()])
        ends.append((*estimate(parts, loss[None], one, batch.shared_noise), pixel))
    (above, variance_above, pixel_above), (below, variance_below, pixel_below) = ends
    logits, flags = ((a.detach() - b.detach()) / (2 * epsilon) for a, b in zip(above, below, strict=True))
    pixel = (pixel_above - pixel_below) / (2 * epsilon)
    magnitudes = estimators.straight_through_magnitude(pixel[None], one.c_B, one.b_B2, len(parts.distribution.space))
    apply_policy_gradient(parts, PolicyGradient(logits, flags, magnitudes), variance_above, variance_below)
    return {"loss": losses_B.mean()}


def augment(parts: Step, images_BCHW: Tensor, sample: Sample, noise: Noise) -> Tensor:
    """The drawn policies applied to uint8 images, as the network takes them."""
    n = len(images_BCHW)
    draws = parts.distribution.space.draws(sample.c_B[:n], sample.b_B2[:n], sample.magnitudes_B2[:n],
                                           noise.signs_B2[:n], noise.centers_B22[:n])
    return parts.normalise(apply_draws(images_BCHW, draws, parts.settings.ranges))


def subtract_baseline(rewards: Tensor, baseline: str, draws: int) -> Tensor:
    """R_i minus the mean of the other draws of the same image, or of all other images; never of itself, which would bias."""
    if baseline == "none":
        return rewards
    if baseline == "second_draw":
        groups = rewards.view(draws, -1)
        return ((groups - groups.mean(0)) * (draws / (draws - 1))).flatten()
    if baseline == "half":  # near the best whether rewards differ between images or within them
        return (subtract_baseline(rewards, "batch", draws) + subtract_baseline(rewards, "second_draw", draws)) / 2
    n = len(rewards) * world()[1]
    return (rewards - mean_over_ranks([rewards.mean()])[0]) * (n / (n - 1))


def policy_gradient(parts: Step, rewards: Tensor, pixel_sums: Tensor | None, sample: Sample,
                    noise: Noise) -> tuple[PolicyGradient, Tensor | None]:
    """The estimate for everything that the default mode learns, and for RELAX what its control variate is trained on.

    pixel_sums [D*B]: the straight-through derivative of each reward for a magnitude, where magnitudes are not drawn.
    """
    distribution, settings = parts.distribution, parts.settings
    means_N2, variance = distribution.magnitude_logits_N2().detach(), None
    if settings.estimator == "marginal":
        assert settings.spread is not None
        logits_N, flags_N2, magnitudes_N2 = estimators.marginal_score(
            rewards, distribution.logits_N().detach(), distribution.flag_logits_N2().detach(), means_N2, settings.spread,
            distribution.pairs_N2, sample)
    else:
        (logits_N, flags_N2), variance = estimate(parts, rewards, sample, noise)
        if settings.spread is None:
            assert pixel_sums is not None
            m_N2 = means_N2.sigmoid()  # what is learned is its logit
            magnitudes_N2 = m_N2 * (1 - m_N2) * estimators.straight_through_magnitude(pixel_sums, sample.c_B, sample.b_B2,
                                                                                      len(m_N2))
        else:
            magnitudes_N2 = estimators.magnitude_score(rewards, means_N2, settings.spread, sample.c_B, sample.b_B2,
                                                       sample.logit_m_B2)
    if settings.entropy:
        logits_N = logits_N + settings.entropy * distribution.entropy_gradient_N()
    return PolicyGradient(logits_N, flags_N2, magnitudes_N2), variance


def estimate(parts: Step, rewards: Tensor, sample: Sample, noise: Noise) -> tuple[estimators.Gradient, Tensor | None]:
    """The mean estimate for (logits [N], flag logits [N,2]), and for RELAX what its control variate is trained on."""
    distribution, settings = parts.distribution, parts.settings
    arguments = (rewards, distribution.logits_N(), distribution.flag_logits_N2(), sample.c_B, sample.b_B2)
    variance = None
    if settings.estimator == "score":
        gradient = estimators.score_function(*arguments)
    elif settings.estimator == "gumbel":
        gradient = estimators.gumbel_softmax(*arguments, noise, settings.temperature)
    else:
        gradient = estimators.relax(*arguments, noise, settings.temperature, parts.control_variate)
        variance = estimators.squared_norm(gradient)
    return (gradient[0].detach().mean(0), gradient[1].detach().mean(0)), variance


def apply_policy_gradient(parts: Step, gradient: PolicyGradient, *variances: Tensor | None) -> None:
    """Puts -gradient into the policy's .grad and the variances' into the control variate's, then updates both."""
    parts.distribution.zero_grad()
    parts.control_variate.zero_grad()
    parts.distribution.backward(PolicyGradient(*mean_over_ranks([gradient.logits_N, gradient.flag_logits_N2,
                                                                 gradient.magnitudes_N2])))
    for variance in variances:
        if variance is not None:
            variance.backward()
    if parts.settings.estimator == "relax":
        parameters = list(parts.control_variate.parameters())
        means = mean_over_ranks([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.grad = mean
    parts.update_policy()
    parts.distribution.clamp_()
