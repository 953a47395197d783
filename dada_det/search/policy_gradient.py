"""The gradient of E[R] for a PolicyDistribution, by the estimator that DADA's settings name.

N sub-policies, 2 slots, B images with a reward each (one image in paper mode).
"""

from torch import Tensor

from dada_det.search import estimators
from dada_det.search.distribution import Noise, PolicyDistribution, PolicyGradient, Sample
from dada_det.search.estimators import ControlVariate
from dada_det.search.settings import Settings


def policy_gradient(settings: Settings, distribution: PolicyDistribution, control_variate: ControlVariate, rewards: Tensor,
                    pixel_sums: Tensor | None, sample: Sample, noise: Noise) -> tuple[PolicyGradient, Tensor | None]:
    """The estimate for everything that the default mode learns, and for RELAX what its control variate is trained on.

    pixel_sums [D*B]: the straight-through derivative of each reward for a magnitude, where magnitudes are not drawn.
    """
    means_N2, variance = distribution.magnitude_logits_N2().detach(), None
    if settings.estimator == "marginal":
        assert settings.spread is not None
        logits_N, flags_N2, magnitudes_N2 = estimators.marginal_score(
            rewards, distribution.logits_N().detach(), distribution.flag_logits_N2().detach(), means_N2, settings.spread,
            distribution.pairs_N2, sample)
    else:
        (logits_N, flags_N2), variance = estimate(settings, distribution, control_variate, rewards, sample, noise)
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


def estimate(settings: Settings, distribution: PolicyDistribution, control_variate: ControlVariate, rewards: Tensor,
             sample: Sample, noise: Noise) -> tuple[estimators.Gradient, Tensor | None]:
    """The mean estimate for (logits [N], flag logits [N,2]), and for RELAX what its control variate is trained on."""
    arguments = (rewards, distribution.logits_N(), distribution.flag_logits_N2(), sample.c_B, sample.b_B2)
    variance = None
    if settings.estimator == "score":
        gradient = estimators.score_function(*arguments)
    elif settings.estimator == "gumbel":
        gradient = estimators.gumbel_softmax(*arguments, noise, settings.temperature)
    else:
        gradient = estimators.relax(*arguments, noise, settings.temperature, control_variate)
        variance = estimators.squared_norm(gradient)
    return (gradient[0].detach().mean(0), gradient[1].detach().mean(0)), variance
