"""The curvature's diagonal against the implicit function theorem on a regression, and its place in the step.

G groups of training examples, n examples of each, K features, weights w [K].
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada_det.augment.space import SearchSpace
from dada_det.search import alignment
from dada_det.search.curvature import DAMPING, SQUARES_DECAY, V_DECAY, RunningDirection, RunningMean, precondition
from dada_det.search.dada import Dada
from dada_det.search.settings import dada_settings
from dada_det.search.step import Batch, Step, augment


@pytest.fixture(scope="module")
def regression() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(features [G,n,K], targets [G,n], validation features [V,K], targets [V]); variances of features span 1 to 1,000."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales_K = torch.logspace(0, 1.5, 12, dtype=torch.float64)
    true_GK = normal(12) + 0.3 * normal(6, 12)  # each group has weights of its own
    x_GnK, x_VK = normal(6, 4000, 12) * scales_K, normal(500, 12) * scales_K
    return (x_GnK, (x_GnK * true_GK[:, None]).sum(2) + 30 * normal(6, 4000), x_VK,
            x_VK @ (true_GK[2] + 0.3 * normal(12)) + 30 * normal(500))


def test_the_preconditioned_alignment_is_the_hypergradient_at_the_end_of_training(
        regression: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x_GnK, y_Gn, x_VK, y_V = regression
    shares_G = torch.full((6,), 1 / 6, dtype=torch.float64, requires_grad=True)
    gram = torch.einsum("g,gnk,gnl->kl", shares_G, x_GnK, x_GnK)
    end_K = torch.linalg.solve(gram, torch.einsum("g,gnk,gn->k", shares_G, x_GnK, y_Gn))  # where training ends
    (exact_G,) = torch.autograd.grad(((x_VK @ end_K - y_V) ** 2).mean() / 2, shares_G)

    end_K = end_K.detach()
    gradients_GnK = x_GnK * (torch.einsum("gnk,k->gn", x_GnK, end_K) - y_Gn)[..., None]
    v_K = (x_VK * (x_VK @ end_K - y_V)[:, None]).mean(0)
    squares = RunningMean(nn.Linear(12, 1, bias=False).double(), SQUARES_DECAY)
    for batch_BK in gradients_GnK.transpose(0, 1).flatten(0, 1).split(48):
        add_square(squares, {"weight": batch_BK.mean(0, keepdim=True)})
    slope_GK = gradients_GnK.mean(1)
    one_step_G = -slope_GK @ v_K
    at_the_end = {"weight": torch.zeros(1, 12, dtype=torch.float64)}
    whole_G = -slope_GK @ precondition({"weight": v_K[None]}, squares.means, at_the_end)["weight"][0]

    def cosine(found_G: Tensor) -> float:  # of the differences between groups: the shares sum to one
        return F.cosine_similarity(found_G - found_G.mean(), exact_G - exact_G.mean(), dim=0).item()

    print(f"cosine to the hypergradient: one step {cosine(one_step_G):.2f}, preconditioned {cosine(whole_G):.2f}")
    assert cosine(whole_G) > 0.95 > 0.8 > cosine(one_step_G)


def test_it_solves_the_diagonal_and_the_gradient_s_own_direction() -> None:
    """H = diag(S + DAMPING s) + rho g g^T with a large rho, solved as a matrix; the scale of H does not matter."""
    generator = torch.Generator().manual_seed(1)
    network = nn.Linear(3, 4).double()
    v, g, *batches = ({name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                       for name, parameter in network.named_parameters()} for _ in range(7))
    found = []
    for scale in (1.0, 1000.0):
        squares = RunningMean(network, SQUARES_DECAY)
        for batch in batches:
            add_square(squares, {name: scale * tensor for name, tensor in batch.items()})
        found.append(flat(precondition(v, squares.means, g)))
    torch.testing.assert_close(found[0], found[1])
    s = flat(squares.means)
    matrix = torch.diag(s + DAMPING * s.mean()) + 1e9 * s.mean() * torch.outer(flat(g), flat(g))
    solved = torch.linalg.solve(matrix, flat(v)) * s.mean()
    torch.testing.assert_close(found[0], solved, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close((found[0] * flat(g)).sum(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


def add_square(squares: RunningMean, gradient: alignment.Weights) -> None:
    """As the step does."""
    squares.add(gradient, gradient)


def flat(weights: alignment.Weights) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in weights.values()])


def test_a_weight_without_gradients_counts_at_most_as_the_damping_says() -> None:
    squares = {"weight": torch.tensor([[4.0, 4.0, 4.0, 0.0]])}
    found = precondition({"weight": torch.ones(1, 4)}, squares, {"weight": torch.zeros(1, 4)})["weight"][0]
    torch.testing.assert_close(found, torch.tensor([3 / (4 + 3 * DAMPING)] * 3 + [1 / DAMPING]))


def test_a_running_mean_of_gradients_forgets_by_its_decay() -> None:
    mean = RunningMean(nn.Linear(1, 1, bias=False), 0.9)
    for value in (1.0, 2.0, 4.0):
        mean.add({"weight": torch.full((1, 1), value)}, torch.ones(()))
    torch.testing.assert_close(mean.means["weight"].item(), 0.1 * (0.81 + 0.9 * 2 + 4))
    assert list(mean.state_dict()) == ["weight"]


def test_the_step_s_direction_is_preconditioned_and_remembers_earlier_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put together by hand from the gradients at the weights that the step found, and those of one step before."""
    torch.manual_seed(0)
    settings = dada_settings("default", unaugmented=0.0)
    algorithm = Dada(SearchSpace(("Rotate", "Solarize", "Brightness")), settings).double()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8 * 8, 3)).double()
    images, labels = torch.randint(0, 256, (2, 8, 3, 10, 10), dtype=torch.uint8), torch.randint(0, 3, (2, 8))
    noise = algorithm.draw_noise(16, torch.Generator().manual_seed(1))
    batch = Batch(images[0], labels[0], images[1], labels[1], noise, noise[:1])
    weights = alignment.weights_of(network)
    before = {name: torch.randn_like(tensor) for name, tensor in weights.items()}  # the gradient of an earlier step
    running = RunningDirection(network).double()
    running.v.add(before, torch.ones(()))
    running.squares.add(before, before)

    @torch.no_grad()
    def update_weights(gradient: alignment.Weights) -> None:
        for name, parameter in network.named_parameters():
            parameter -= 0.1 * gradient[name]

    parts = Step(network, settings, lambda pixels: pixels.double() / 127.5 - 1, update_weights, lambda name: None,
                 running=running)
    draws = algorithm.draws(algorithm.distribution.sample(noise), noise, 8)
    augmented, _ = augment(parts, batch.images_BCHW, labels[0], draws)
    gradient = alignment.training_gradient(network, augmented, labels[0])[0]
    v = alignment.gradient_at(network, weights, parts.normalise(images[1]), labels[1])
    mean = {name: 0.1 * (V_DECAY * before[name] + tensor / alignment.norm(v)) for name, tensor in v.items()}
    squares = {name: (1 - SQUARES_DECAY) * (SQUARES_DECAY * before[name].square() + tensor.square())
               for name, tensor in gradient.items()}
    wanted = precondition(mean, squares, gradient)

    directions, kept = [], alignment.ends_consuming

    def watched(weights: alignment.Weights, direction: alignment.Weights) -> alignment.Ends:
        directions.append(dict(direction))
        ends = kept(weights, direction)
        assert not direction
        return ends

    monkeypatch.setattr(alignment, "ends_consuming", watched)
    algorithm.default_step(parts, batch, learn=True)
    torch.testing.assert_close(directions, [wanted])
