"""What the estimators are made of, on a table of rewards (3 sub-policies, 2 flags); their means: test_search_exact.py."""

import itertools

import pytest
import torch
from torch import Tensor

from dada_det.search import estimators
from dada_det.search.distribution import Noise, draw_noise

N, DRAWS = 3, 60_000
LOGITS_N = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64)
FLAGS_N2 = torch.tensor([[0.4, -1.0], [0.2, 0.8], [-0.3, 1.5]], dtype=torch.float64)
REWARDS = torch.randn(N, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 2  # R(c, b_1, b_2)


def outcomes() -> tuple[Tensor, Tensor]:
    rows = list(itertools.product(range(N), (0, 1), (0, 1)))
    return torch.tensor([row[0] for row in rows]), torch.tensor([row[1:] for row in rows]).bool()


def log_probability(logits_N: Tensor, flags_N2: Tensor, c: Tensor, b: Tensor) -> Tensor:
    p = flags_N2.sigmoid()[c]
    return logits_N.log_softmax(0)[c] + torch.where(b, p, 1 - p).log().sum(1)


def exact_gradient() -> tuple[Tensor, Tensor]:
    logits, flags = LOGITS_N.clone().requires_grad_(), FLAGS_N2.clone().requires_grad_()
    c, b = outcomes()
    expected = (log_probability(logits, flags, c, b).exp() * REWARDS[c, b[:, 0].long(), b[:, 1].long()]).sum()
    return torch.autograd.grad(expected, (logits, flags))


def draw(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Noise]:
    noise = draw_noise(n, N, torch.Generator().manual_seed(seed))
    c = (LOGITS_N + noise.gumbel_BN).argmax(1)
    b = FLAGS_N2[c] + noise.logistic_BN2[torch.arange(n), c] > 0
    return REWARDS[c, b[:, 0].long(), b[:, 1].long()], c, b, noise


def standard_errors(gradient: estimators.Gradient) -> Tensor:
    """How many standard errors the mean of the draws lies from the exact gradient, entry by entry."""
    parts = []
    for draws, exact in zip(gradient, exact_gradient(), strict=True):
        draws = draws.detach()
        parts.append(((draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5 + 1e-12)).flatten())
    return torch.cat(parts)


def test_draws_follow_the_probabilities() -> None:
    _, c, b, _ = draw(DRAWS)
    all_c, all_b = outcomes()
    exact = log_probability(LOGITS_N, FLAGS_N2, all_c, all_b).exp()
    assert exact.sum().item() == pytest.approx(1)
    share = torch.bincount(c * 4 + b[:, 0] * 2 + b[:, 1], minlength=12) / DRAWS
    assert ((share - exact).abs() < 4 * (exact * (1 - exact) / DRAWS).sqrt()).all()


def test_score_is_the_gradient_of_the_log_probability() -> None:
    c, b = outcomes()
    got = estimators.scores(LOGITS_N, FLAGS_N2, c, b)
    for i in range(len(c)):
        logits, flags = LOGITS_N.clone().requires_grad_(), FLAGS_N2.clone().requires_grad_()
        want = torch.autograd.grad(log_probability(logits, flags, c[i:i + 1], b[i:i + 1]).sum(), (logits, flags))
        torch.testing.assert_close((got[0][i], got[1][i]), want)


def test_a_control_variate_fed_only_the_chosen_flags_biases() -> None:
    """Why c_phi takes the flags of all sub-policies: with the chosen ones alone the estimate is off."""
    torch.manual_seed(1)
    control_variate = estimators.ControlVariate(N).double()
    torch.nn.init.normal_(control_variate.layers[-1].weight)
    rewards, c, b, noise = draw(DRAWS)
    mask = torch.nn.functional.one_hot(c, N).double()[:, :, None]
    gradient = estimators.relax(rewards, LOGITS_N, FLAGS_N2, c, b, noise, 0.5,
                                lambda weights, flags: control_variate(weights, flags * mask))
    assert standard_errors(gradient).abs().max() > 6


def test_in_equation_19_the_control_variate_cancels() -> None:
    """The difference of two RELAX estimates with one sample is REINFORCE without a baseline."""
    torch.manual_seed(2)
    control_variate = estimators.ControlVariate(N).double()
    torch.nn.init.normal_(control_variate.layers[-1].weight)
    rewards, c, b, noise = draw(32)
    above, below = rewards + 0.01 * torch.randn_like(rewards), rewards
    ends = [estimators.relax(end, LOGITS_N, FLAGS_N2, c, b, noise, 0.5, control_variate) for end in (above, below)]
    reinforce = estimators.score_function(above - below, LOGITS_N, FLAGS_N2, c, b)
    for high, low, want in zip(*ends, reinforce, strict=True):
        torch.testing.assert_close(high - low, want, rtol=0, atol=1e-13)


def test_straight_through_magnitude_is_the_mean_over_images() -> None:
    pixel_rewards = torch.tensor([1.0, 2.0, 4.0])
    c, b = torch.tensor([0, 2, 2]), torch.tensor([[True, False], [True, True], [False, True]])
    got = estimators.straight_through_magnitude(pixel_rewards, c, b, N)
    torch.testing.assert_close(got, torch.tensor([[1.0, 0], [0, 0], [2, 6]]) / 3)
