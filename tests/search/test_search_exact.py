"""The search's estimates against exact gradients, on a real search problem small enough to enumerate (conftest.py).

M images of the problem, N = 3 sub-policies, S states of a slot; K batches of B images with D draws of each.
"""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dada_det.search import alignment, estimators
from dada_det.search.distribution import PolicyGradient, Sample, draw_noise
from dada_det.search.estimators import less_mean_of_others

M, N, BATCHES, DRAWS, BATCH, TEMPERATURE = 8, 3, 1250, 2, 16, 0.5  # 40,000 draws
BASELINES = ("none", "batch")  # rewards as they are, or less the mean of all others
ROWS = (("score", "none", 1), ("score", "batch", 1), ("score", "none", 2), ("score", "batch", 2), ("relax", "none", 2),
        ("relax", "batch", 2))  # estimator, baseline, draws of an image


class Draw:
    """K * D * B rows, batch by batch and in each draw by draw."""

    def __init__(self, problem: Any, batches: int, seed: int, draws: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.problem, self.batches, self.draws = problem, batches, draws
        image = torch.randint(M, (batches, 1, BATCH), generator=generator).expand(-1, draws, -1).flatten()
        self.noise = draw_noise(len(image), N, generator)
        self.sample = problem.distribution.sample(self.noise)
        self.rewards = problem.rewards_of(image, self.sample, self.noise.signs_B2)

    def advantages(self, baseline: str) -> Tensor:
        if baseline == "none":
            return self.rewards
        return torch.cat([less_mean_of_others(own) for own in self.rewards.view(self.batches, -1)])

    def score(self, rewards: Tensor) -> Tensor:
        """The estimate of each batch for logits and flags, [K,9]."""
        return self.means(estimators.score_function(rewards, *self.problem.parameters[:2], self.sample.c_B,
                                                    self.sample.b_B2))

    def relax(self, rewards: Tensor, control_variate: Callable) -> estimators.Gradient:
        return estimators.relax(rewards, *self.problem.parameters[:2], self.sample.c_B, self.sample.b_B2, self.noise,
                                TEMPERATURE, control_variate)

    def means(self, gradient: estimators.Gradient) -> Tensor:
        """The mean over the rows of each batch, [K,9]."""
        rows = torch.cat([gradient[0].detach(), gradient[1].detach().flatten(1)], 1)
        return rows.view(self.batches, -1, 3 * N).mean(1)


@functools.cache
def drawn(problem: Any, draws: int = DRAWS) -> Draw:
    return Draw(problem, BATCHES, seed=0, draws=draws)


@functools.cache
def trained_control_variate(problem: Any, baseline: str) -> estimators.ControlVariate:
    """A control variate after 120 steps of Adam on the mean of ||g||^2 (Eq. 13), 64 draws a step."""
    torch.manual_seed(0)
    control_variate = estimators.ControlVariate(N).double()
    optimizer = torch.optim.Adam(control_variate.parameters(), 1e-2)
    for step in range(120):
        draw = Draw(problem, 2, step + 1, DRAWS)
        optimizer.zero_grad()
        estimators.squared_norm(draw.relax(draw.advantages(baseline), control_variate)).backward()
        optimizer.step()
    return control_variate


@functools.cache
def estimates(problem: Any, estimator: str, baseline: str, draws: int = DRAWS) -> Tensor:
    """The estimates of all batches [K,9]; relax with a control variate trained on the same baseline."""
    draw = drawn(problem, draws)
    advantages = draw.advantages(baseline)
    if estimator == "score":
        return draw.score(advantages)
    return draw.means(draw.relax(advantages, trained_control_variate(problem, baseline)))


def marginal_estimates(problem: Any, baseline: str) -> Tensor:
    """marginal_score of each batch for logits, flags and magnitudes' means, [K,15]."""
    draw = drawn(problem, DRAWS)
    rows = []
    for index, advantages in enumerate(draw.advantages(baseline).view(BATCHES, -1)):
        own = slice(index * len(advantages), (index + 1) * len(advantages))
        sample = Sample(*(getattr(draw.sample, field.name)[own] for field in fields(Sample)))
        gradient = estimators.marginal_score(advantages, *problem.parameters, problem.spread,
                                             problem.distribution.pairs_N2, sample)
        rows.append(torch.cat([part.flatten() for part in gradient]))
    return torch.stack(rows)


def standard_errors(means_K: Tensor, exact: Tensor) -> Tensor:
    """How many standard errors the mean over all batches lies from the exact gradient, entry by entry."""
    return (means_K.mean(0) - exact) / (means_K.std(0) / len(means_K) ** 0.5)


def test_a_table_of_rewards_is_what_an_augmented_batch_gives(problem: Callable) -> None:
    """Every probability is counted, and looking a reward up is drawing, augmenting and differentiating."""
    small = problem("strong")
    assert small.probabilities(*small.parameters).sum().item() == pytest.approx(1)
    image, noise = torch.arange(64) % M, draw_noise(64, N, torch.Generator().manual_seed(4))
    sample = small.distribution.sample(noise)
    images = small.augment(image, sample.c_B, sample.b_B2, small.rounded(sample.logit_m_B2).sigmoid(), noise.signs_B2)
    rewards = alignment.rewards_forward_mode(small.network, small.weights, small.v, images, small.labels_M[image])
    torch.testing.assert_close(small.rewards_of(image, sample, noise.signs_B2), rewards)
    assert rewards.std() > 0.1


def test_the_policy_receives_minus_the_gradient(problem: Callable) -> None:
    """PolicyDistribution.backward against autograd of -E_q[R] through the distribution's own parameters."""
    small = problem("strong")
    distribution, exact = small.distribution, small.exact()
    tensors = (distribution.logits_N(), distribution.flag_logits_N2(), distribution.magnitude_logits_N2())
    expected = (small.probabilities(*tensors) * small.rewards).sum((1, 2, 3)).mean()
    want = torch.autograd.grad(-expected, list(distribution.parameters()))
    distribution.zero_grad()
    distribution.backward(PolicyGradient(exact[:3], exact[3:9].view(N, 2), exact[9:].view(N, 2)))
    for parameter, gradient in zip(distribution.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("estimator", ["score", "relax"])
def test_the_mean_over_draws_meets_the_exact_gradient(problem: Callable, estimator: str, baseline: str) -> None:
    """40,000 draws, logits and flags within 4 standard errors; relax with a trained control variate."""
    errors = standard_errors(estimates(problem("strong"), estimator, baseline), problem("strong").exact()[:9])
    assert errors.abs().max() < 4, errors


def test_relax_is_unbiased_with_any_control_variate(problem: Callable) -> None:
    torch.manual_seed(1)
    control_variate = estimators.ControlVariate(N).double()
    nn.init.normal_(control_variate.layers[-1].weight)
    draw = drawn(problem("strong"))
    means = draw.means(draw.relax(draw.rewards, control_variate))
    assert standard_errors(means, draw.problem.exact()[:9]).abs().max() < 4


def test_the_baseline_of_a_reward_is_the_mean_of_the_others() -> None:
    """d advantage_i / d R_j: 1 for itself, minus an equal share for the others."""
    got = torch.autograd.functional.jacobian(less_mean_of_others, torch.randn(8).double())
    torch.testing.assert_close(got, torch.eye(8).double() - (1 - torch.eye(8).double()) / 7)


def test_a_baseline_that_holds_the_draw_itself_biases(problem: Callable) -> None:
    """Why less_mean_of_others leaves it out: the plain mean of two halves the gradient."""
    draw = drawn(problem("strong"), 1)
    pairs = draw.rewards.view(-1, 2)
    means, exact = draw.score((pairs - pairs.mean(1, keepdim=True)).flatten()), draw.problem.exact()[:9]
    assert standard_errors(means, exact).abs().max() > 6
    assert standard_errors(means, exact / 2).abs().max() < 4


def test_gumbel_softmax_is_biased(problem: Callable, capsys: pytest.CaptureFixture) -> None:
    draw = drawn(problem("strong"))
    means = draw.means(estimators.gumbel_softmax(draw.rewards, *draw.problem.parameters[:2], draw.sample.c_B,
                                                 draw.sample.b_B2, draw.noise, TEMPERATURE))
    exact = draw.problem.exact()[:9]
    errors = standard_errors(means, exact).abs().max()
    with capsys.disabled():
        print(f"\ngumbel_softmax is off by {100 * (means.mean(0) - exact).norm() / exact.norm():.0f} % in norm, "
              f"by up to {errors:.0f} standard errors (n = {len(draw.rewards)})")
    assert errors > 10


@pytest.mark.parametrize("name", ["strong", "mild"])
def test_what_lowers_the_variance(problem: Callable, name: str, capsys: pytest.CaptureFixture) -> None:
    """Every row unbiased; the variance of a step at equal rewards, over that of the score less the mean of the others."""
    small, table = problem(name), {}
    for estimator, baseline, draws in ROWS:
        means = estimates(small, estimator, baseline, draws)
        assert standard_errors(means, small.exact()[:9]).abs().max() < 4, (estimator, baseline, draws)
        table[estimator, baseline, draws] = means.var(0).sum().item() * draws
    batch = table["score", "batch", 2]
    with capsys.disabled():
        print(f"\n{name}: variance of a step of {BATCH} images x draws\n  estimator baseline draws  over batch mean")
        for (estimator, baseline, draws), own in table.items():
            print(f"  {estimator:9} {baseline:8} {draws:5} {own / batch:16.2f}")
    for baseline in BASELINES:
        assert table["relax", baseline, 2] < table["score", baseline, 2]
    assert batch < table["score", "none", 2]


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_marginal_score_is_unbiased_in_every_parameter(baseline: str, problem: Callable) -> None:
    small = problem("strong")
    assert standard_errors(marginal_estimates(small, baseline), small.exact()).abs().max() < 4


@pytest.mark.parametrize("name", ["strong", "mild"])
def test_summing_the_sub_policy_out_lowers_the_variance(name: str, problem: Callable,
                                                        capsys: pytest.CaptureFixture) -> None:
    """Rao-Blackwell, over the plain score with the same baseline and the same draws; 210 flags of 105 share far more."""
    small = problem(name)
    for baseline in BASELINES:
        ratio = (marginal_estimates(small, baseline)[:, :3 * N].var(0).sum()
                 / estimates(small, "score", baseline).var(0).sum()).item()
        with capsys.disabled():
            print(f"\nvariance of marginal_score over score_function's, {name}, baseline {baseline}: {ratio:.2f}", end="")
        assert ratio < 1


def test_an_operation_that_acted_alone_is_credited_to_all_that_hold_it() -> None:
    """By hand: flags of probability 1/2, equal preferences and means, the operation 0 alone on the one image."""
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    sample = Sample(torch.tensor([0]), torch.tensor([[True, False]]), torch.tensor([[0.4, 9.0]], dtype=torch.float64),
                    torch.zeros(1, 2))
    rewards = torch.tensor([2.0], dtype=torch.float64)
    logits, flags, means = estimators.marginal_score(rewards, zeros[:, 0], zeros, zeros, 0.8, pairs, sample)
    torch.testing.assert_close(logits, 2 * torch.tensor([1 / 6, 1 / 6, -1 / 3], dtype=torch.float64))
    torch.testing.assert_close(flags, torch.tensor([[0.5, -0.5], [0.5, -0.5], [0, 0]], dtype=torch.float64))
    torch.testing.assert_close(means, torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.float64) * 0.4 / 0.64)
