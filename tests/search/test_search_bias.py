"""What an image-wise score is off by in a real step: BatchNorm ties the images of a batch; v has seen the draw it judges.

All J = 12^B drawn batches of the first B images of the small problem (conftest.py), so that both are exact up to B = 3;
for B = 8 a sample of them. O = 12 outcomes of an image: sub-policy and flags, at one sign and one strength.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from dada_det.search import alignment, estimators

O, SAMPLED = 12, 6_000  # noqa: E741
MIDDLING = 19  # the state of a slot: positive sign, strength 0.65


class Joint:
    """J drawn batches of B images, what their probabilities are, and the rewards of each."""

    def __init__(self, problem: Any, batch: int, batch_norm: bool = False) -> None:
        self.problem, self.batch, self.labels_B = problem, batch, problem.labels_M[:batch]
        self.net = problem.trained_network(batch_norm)
        self.weights = alignment.weights_of(self.net)
        states = torch.tensor([0, MIDDLING])
        self.images = problem.images[:batch, :, states][:, :, :, states].flatten(1, 3)  # [B,O,3,H,W]
        c_O, flags_O = torch.arange(O) // 4, torch.arange(O) % 4
        b_O2 = torch.stack([flags_O >= 2, flags_O % 2 == 1], 1)
        logits, flag_logits = problem.parameters[:2]
        p_O2 = flag_logits.sigmoid()[c_O]
        p_O = logits.softmax(0)[c_O] * torch.where(b_O2, p_O2, 1 - p_O2).prod(1)
        if batch <= 3:
            self.outcomes_JB = torch.cartesian_prod(*[torch.arange(O)] * batch)
            self.p_J = p_O[self.outcomes_JB].prod(1)
        else:
            draws = torch.multinomial(p_O, SAMPLED * batch, replacement=True, generator=torch.Generator().manual_seed(0))
            self.outcomes_JB, self.p_J = draws.view(-1, batch), torch.full((SAMPLED,), 1 / SAMPLED, dtype=torch.float64)
        scores = estimators.scores(logits, flag_logits, c_O, b_O2)
        self.scores = torch.cat([part.flatten(1) for part in scores], 1)[self.outcomes_JB]  # [J,B,9]
        self.gradients = self.each(grad(lambda weights, outcomes_B: self.losses(weights, outcomes_B).mean()))
        self.v = self.validate(alignment.step(self.weights, self.average(self.gradients), -problem.zeta))

    def each(self, function: Callable, *mapped: alignment.Weights) -> Any:
        """function(weights, outcomes_B, ..) of every drawn batch."""
        dims = (None, 0, *[0] * len(mapped))
        return vmap(function, in_dims=dims, chunk_size=1024)(self.weights, self.outcomes_JB, *mapped)

    def batch_of(self, outcomes_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[torch.arange(self.batch), outcomes_B], self.labels_B

    def losses(self, weights: alignment.Weights, outcomes_B: Tensor) -> Tensor:
        return alignment.losses_at(self.net, weights, *self.batch_of(outcomes_B))

    def validate(self, weights: alignment.Weights) -> alignment.Weights:
        """The gradient of the validation loss, by torch.func so that it can be mapped over weights."""
        images, labels = self.problem.val_images, self.problem.val_labels_V
        return grad(lambda w: alignment.losses_at(self.net, w, images, labels).mean())(weights)

    def rewards(self, v: alignment.Weights) -> Tensor:
        """R_i with v held fixed, [J,B]."""
        return self.each(lambda w, x: alignment.rewards_forward_mode(self.net, w, v, *self.batch_of(x)))

    def shared_v(self) -> alignment.Weights:
        """v at the w' of every drawn batch, [J,..] by name."""
        def shared(weights: alignment.Weights, _: Tensor, gradient: alignment.Weights) -> alignment.Weights:
            return self.validate({name: weights[name] - self.problem.zeta * gradient[name] for name in weights})

        return self.each(shared, self.gradients)

    def rewards_of_a_shared_draw(self, v_J: alignment.Weights) -> Tensor:
        """R_i with the v of the same drawn batch, as in a step of the search, [J,B]."""
        return self.each(lambda w, x, v: alignment.rewards_forward_mode(self.net, w, v, *self.batch_of(x)), v_J)

    def average(self, tensors_J: alignment.Weights) -> alignment.Weights:
        return {name: torch.einsum("j,j...->...", self.p_J, tensor) for name, tensor in tensors_J.items()}

    def mean(self, terms_J9: Tensor) -> tuple[Tensor, Tensor]:
        """E of [J,9], and its standard errors where the batches are a sample (0 where they are all)."""
        mean = self.p_J @ terms_J9
        return mean, terms_J9.std(0) / SAMPLED**0.5 if self.batch > 3 else torch.zeros_like(mean)

    def image_wise(self, rewards_JB: Tensor) -> Tensor:
        """The estimate of every drawn batch, each image's score times its own reward, [J,9]."""
        return (rewards_JB[:, :, None] * self.scores).mean(1)

    def full(self, rewards_JB: Tensor) -> Tensor:
        """The same with the scores of all images times the mean reward, which drops nothing, [J,9]."""
        return rewards_JB.mean(1)[:, None] * self.scores.sum(1)


def share(bias: tuple[Tensor, Tensor], exact: Tensor) -> tuple[float, float]:
    """The norm of a bias over the gradient's, and of its standard errors."""
    return (bias[0].norm() / exact.norm()).item(), (bias[1].norm() / exact.norm()).item()


def of_a_shared_draw(small: Any, batch: int) -> list[tuple[float, float]]:
    """The shares for v from the same draw and for v from another draw of the same images."""
    joint = Joint(small, batch)
    rewards = joint.rewards(joint.v)
    fixed, v_J = joint.image_wise(rewards), joint.shared_v()
    exact = joint.mean(fixed)[0]
    if batch <= 3:  # without BatchNorm an image-wise score drops nothing
        torch.testing.assert_close(joint.mean(joint.full(rewards))[0], exact, rtol=1e-9, atol=1e-12)
    same = joint.image_wise(joint.rewards_of_a_shared_draw(v_J))
    other = joint.image_wise(joint.rewards(joint.average(v_J)))
    return [share(joint.mean(estimate - fixed), exact) for estimate in (same, other)]


def of_batchnorm(small: Any, batch: int) -> tuple[float, float]:
    joint = Joint(small, batch, batch_norm=True)
    rewards = joint.rewards(joint.v)
    rewards = rewards - joint.p_J @ rewards  # a constant for each image, for the sample's sake
    full = joint.full(rewards)
    return share(joint.mean(joint.image_wise(rewards) - full), joint.mean(full)[0])


def test_bias_of_a_shared_draw_and_of_batchnorm(problem: Callable, capsys: pytest.CaptureFixture) -> None:
    small, lines, table = problem("strong"), [], []
    for batch in (2, 3, 8):
        table.append([*of_a_shared_draw(small, batch), of_batchnorm(small, batch)])
        how = f"{SAMPLED} sampled" if batch > 3 else f"all {O**batch}"
        cells = (f"{what} {value:.3f} ± {error:.3f}" for what, (value, error) in
                 zip(("v of the same draw", "of another draw", "BatchNorm"), table[-1], strict=True))
        lines.append(f"  B = {batch} ({how} draws): {', '.join(cells)}")
    with capsys.disabled():
        print(f"\nbias of the image-wise score over the gradient's norm (zeta = {small.zeta})", *lines, sep="\n")
    (same, _, _), _, (same_8, other_8, _) = table
    assert 4 * same_8[1] < same_8[0] < same[0] / 2  # falls with the batch
    assert other_8[0] < same_8[0] / 2
    assert all(normed[0] > 0.05 + 4 * normed[1] for _, _, normed in table)
