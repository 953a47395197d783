"""Estimates of the gradient of E_q[R] for the logits of a policy distribution, one image at a time.

B images, N sub-policies, 2 slots. q = (c, b): a sub-policy and its two flags. p(q) = p(c) p(b | c), so an estimator scores
only the flags of the chosen sub-policy, as only they acted on the image; `marginal_score` scores every sub-policy that could
have given the image. Every estimator is a function of tensors, and its noise is an argument. Those of flags return
(logits_BN, flag_logits_BN2), whose mean over B is the estimate; `marginal_score` and `straight_through_magnitude` say what
they return.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.search.distribution import Noise, Sample
from dada_det.search.ranks import mean_over_ranks, world

Gradient = tuple[Tensor, Tensor]


def score_function(rewards_B: Tensor, logits_N: Tensor, flag_logits_N2: Tensor, c_B: Tensor, b_B2: Tensor) -> Gradient:
    """REINFORCE: R_i times the gradient of log p(q_i) (Williams, 1992). Unbiased; a baseline is to be subtracted before."""
    logits_BN, flags_BN2 = scores(logits_N, flag_logits_N2, c_B, b_B2)
    return rewards_B[:, None] * logits_BN, rewards_B[:, None, None] * flags_BN2


def marginal_score(rewards_B: Tensor, logits_N: Tensor, flag_logits_N2: Tensor, means_N2: Tensor, spread: float,
                   pairs_N2: Tensor, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """The score function with the sub-policy summed out: R_i times the gradient of log p(what acted on image i).

    An image sees which operations acted (A) and how strongly (m), not which sub-policy brought them:

        grad log p(A, m) = sum_s r_s grad log [p(s) p(A | s) p(m | A, s)],    r_s = p(s | A, m)

    This has the mean of the plain score and, by Rao and Blackwell, never more variance: an operation that acted alone is
    credited to all sub-policies that hold it.

    Args:
        means_N2, spread: of the magnitudes' normal on the logit.
        pairs_N2: the operations of each sub-policy, long.

    Returns:
        The estimate, a mean over B, for the logits [N], the flags' logits [N,2] and means_N2 [N,2].
    """
    operations_B2 = torch.where(sample.b_B2, pairs_N2[sample.c_B], -1)
    # [B,N,2,2]: whether slot k of sub-policy s is what acted in slot j of image i
    matches = pairs_N2[None, :, :, None] == operations_B2[:, None, None, :]
    flags_BN2 = matches.any(3)
    explains_BN = flags_BN2.sum(2) == sample.b_B2.sum(1)[:, None]
    logit_m_BN2 = (matches * sample.logit_m_B2[:, None, None, :]).sum(3)
    deviations_BN2 = flags_BN2 * (logit_m_BN2 - means_N2) / spread
    log_joint_BN = (logits_N.log_softmax(0) + F.logsigmoid(torch.where(flags_BN2, flag_logits_N2, -flag_logits_N2)).sum(2)
                    - deviations_BN2.square().sum(2) / 2)
    responsibilities_BN = log_joint_BN.masked_fill(~explains_BN, -torch.inf).softmax(1)
    weighted_BN = rewards_B[:, None] * responsibilities_BN
    n = len(rewards_B)
    return ((weighted_BN - rewards_B[:, None] * logits_N.softmax(0)).sum(0) / n,
            (weighted_BN[:, :, None] * (flags_BN2.to(logits_N.dtype) - flag_logits_N2.sigmoid())).sum(0) / n,
            (weighted_BN[:, :, None] * deviations_BN2).sum(0) / (n * spread))


def gumbel_softmax(rewards_B: Tensor, logits_N: Tensor, flag_logits_N2: Tensor, c_B: Tensor, b_B2: Tensor, noise: Noise,
                   temperature: float) -> Gradient:
    """Straight-through Gumbel-softmax: R_i times the gradient of the relaxed weight of what was drawn. Biased.

    The weight is softmax(z / temperature)[c] for the sub-policy, times the relaxed Bernoulli of each of its flags (Jang et
    al. 2017; Maddison et al. 2017). In the forward pass each factor is 1, so the product's gradient is the sum of theirs.
    """
    logits_BN, flags_BN2 = _leaves(logits_N, flag_logits_N2, len(c_B))
    weights_BN, relaxed_BN2 = _soften(*_relaxed(logits_BN, flags_BN2, noise), temperature)
    chosen_B2 = _at(relaxed_BN2, c_B)
    weight_B = _at(weights_BN, c_B) + torch.where(b_B2, chosen_B2, 1 - chosen_B2).sum(1)
    gradients = torch.autograd.grad(weight_B, (logits_BN, flags_BN2), rewards_B)
    return gradients[0], gradients[1]


def relax(rewards_B: Tensor, logits_N: Tensor, flag_logits_N2: Tensor, c_B: Tensor, b_B2: Tensor, noise: Noise,
          temperature: float, control_variate: Callable[[Tensor, Tensor], Tensor]) -> Gradient:
    """RELAX (Grathwohl et al. 2018, Eq. 8) of every R_i:

        g_i = [R_i - c(z~_i)] grad log p(q_i) + grad c(z_i) - grad c(z~_i)

    Unbiased for every control variate. The result keeps its graph to the control variate's parameters, so the mean of
    ||g_i||^2 trains them (Eq. 13 of DADA).
    """
    logits_BN, flags_BN2 = _leaves(logits_N, flag_logits_N2, len(c_B))
    z = _relaxed(logits_BN, flags_BN2, noise)
    z_tilde = _relaxed_given(logits_BN, flags_BN2, z[1], c_B, b_B2, noise)
    value_B = control_variate(*_soften(*z, temperature))
    value_tilde_B = control_variate(*_soften(*z_tilde, temperature))
    difference = torch.autograd.grad((value_B - value_tilde_B).sum(), (logits_BN, flags_BN2), create_graph=True)
    score = score_function(rewards_B - value_tilde_B, logits_N, flag_logits_N2, c_B, b_B2)
    return score[0] + difference[0], score[1] + difference[1]


def less_mean_of_others(rewards_B: Tensor) -> Tensor:
    """Returns R_i less the mean of all other rewards, those of the other processes among them, [B].

    A baseline that holds R_i itself would bias the estimate.
    """
    n = len(rewards_B) * world()[1]
    return (rewards_B - mean_over_ranks([rewards_B.mean()])[0]) * (n / (n - 1))


def squared_norm(gradient: Gradient) -> Tensor:
    """Returns the mean over B of ||g_i||^2, a scalar: the variance of the estimate up to a constant."""
    return gradient[0].square().sum(1).mean() + gradient[1].square().sum((1, 2)).mean()


def straight_through_magnitude(pixel_rewards_B: Tensor, c_B: Tensor, b_B2: Tensor, n: int) -> Tensor:
    """Eq. 10 of DADA: every pixel's derivative for the magnitude is 1, so dR_i/dm is the sum of dR_i/dx.

    Args:
        pixel_rewards_B: these sums.

    Returns:
        The mean over B for the magnitudes of n sub-policies, [n,2].
    """
    return _scatter_mean(pixel_rewards_B[:, None] * b_B2, c_B, n)


def scores(logits_N: Tensor, flag_logits_N2: Tensor, c_B: Tensor, b_B2: Tensor) -> Gradient:
    """Returns the gradient of log p(q_i) for the logits of each image, [B,N] and [B,N,2]."""
    chosen_BN = F.one_hot(c_B, len(logits_N)).to(logits_N.dtype)
    score_B2 = b_B2.to(logits_N.dtype) - flag_logits_N2.detach().sigmoid()[c_B]
    return chosen_BN - logits_N.detach().softmax(0), chosen_BN[:, :, None] * score_B2[:, None]


class ControlVariate(nn.Module):
    """c_phi(softmax(z_c / tau) [B,N], relaxed flags of all sub-policies [B,N,2]) -> [B]: two hidden layers of 100.

    The last layer starts at zero: there RELAX is the score function.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        last = nn.Linear(100, 1)
        self.layers = nn.Sequential(nn.Linear(3 * n, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, weights_BN: Tensor, flags_BN2: Tensor) -> Tensor:
        return self.layers(torch.cat([weights_BN, flags_BN2.flatten(1)], 1)).squeeze(1)


def _leaves(logits_N: Tensor, flag_logits_N2: Tensor, n: int) -> Gradient:
    """A copy of the logits for every image, so that one autograd call gives the gradient of each."""
    copies = (logits_N.detach().expand(n, -1).clone(), flag_logits_N2.detach().expand(n, -1, -1).clone())
    return copies[0].requires_grad_(), copies[1].requires_grad_()


def _relaxed(logits_BN: Tensor, flags_BN2: Tensor, noise: Noise) -> Gradient:
    """z: Gumbel(logits) and Logistic(flag logits); argmax and z > 0 are the draw itself."""
    return logits_BN.log_softmax(1) + noise.gumbel_BN, flags_BN2 + noise.logistic_BN2


def _relaxed_given(logits_BN: Tensor, flags_BN2: Tensor, z_flags_BN2: Tensor, c_B: Tensor, b_B2: Tensor,
                   noise: Noise) -> Gradient:
    """z~: z redrawn given the outcome (Grathwohl et al., Appendix B): all of z_c, and the chosen flags; others are kept."""
    log_p_BN = logits_BN.log_softmax(1)
    log_e_BN = -noise.redraw_gumbel_BN  # log of a standard exponential
    log_e_chosen_B1 = log_e_BN.gather(1, c_B[:, None])
    others_BN = -torch.logaddexp(log_e_BN - log_p_BN, log_e_chosen_B1)
    z_BN = others_BN.scatter(1, c_B[:, None], -log_e_chosen_B1)
    p_B2 = _at(flags_BN2, c_B).sigmoid()
    v_B2 = torch.where(b_B2, 1 - p_B2 + noise.redraw_uniform_B2 * p_B2, noise.redraw_uniform_B2 * (1 - p_B2))
    tiny = torch.finfo(v_B2.dtype).eps
    redrawn_B2 = _at(flags_BN2, c_B) + v_B2.clamp(tiny, 1 - tiny).logit()
    index_B12 = c_B[:, None, None].expand(-1, 1, 2)
    return z_BN, z_flags_BN2.scatter(1, index_B12, redrawn_B2[:, None])


def _soften(z_BN: Tensor, z_flags_BN2: Tensor, temperature: float) -> Gradient:
    return (z_BN / temperature).softmax(1), (z_flags_BN2 / temperature).sigmoid()


def _at(values: Tensor, c_B: Tensor) -> Tensor:
    """values[i, c_i] for every image i."""
    return values[torch.arange(len(c_B), device=c_B.device), c_B]


def _scatter_mean(values_B2: Tensor, c_B: Tensor, n: int) -> Tensor:
    return values_B2.new_zeros(n, 2).index_add_(0, c_B, values_B2) / len(c_B)
