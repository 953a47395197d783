"""The verdict: errors that hold what they promise, shrinkage, and a winner that is told apart or the best fixed policy."""

import itertools

import pytest
import torch

from dada_det.search.verdict import (
    CORRECT,
    MARGIN,
    MARGIN_ON_TARGET,
    SCORE,
    Comparison,
    Estimate,
    better_than_guessing,
    clustered_variance,
    on_all_images,
    random_effects,
    standings,
    verdict,
)

IMAGES, GROUPS = 120, 30
GROUP_V = torch.arange(IMAGES) // (IMAGES // GROUPS)


def simulated(generator: torch.Generator, effects: dict[str, float], folds: int = 2,
              noise: float = 0.5) -> dict[tuple[str, int], torch.Tensor]:
    """Scores of candidates with true effects: each group has its own difference, each image a little more."""
    scores = {}
    for (name, effect), fold in itertools.product(effects.items(), range(folds)):
        groups = noise * torch.randn(GROUPS, generator=generator, dtype=torch.float64)
        values = effect + groups[GROUP_V] + 0.1 * torch.randn(IMAGES, generator=generator, dtype=torch.float64)
        scores[name, fold] = torch.stack([values, (values > 0).double()])
    return scores


def test_the_error_of_a_mean_counts_groups_and_not_images() -> None:
    generator = torch.Generator().manual_seed(0)
    means, variances = [], []
    for _ in range(2000):
        values = torch.randn(GROUPS, generator=generator, dtype=torch.float64)[GROUP_V]
        means.append(values.mean())
        variances.append(clustered_variance(values, GROUP_V))
    true = float(torch.stack(means).var())
    assert true == pytest.approx(1 / GROUPS, rel=0.1)
    assert sum(variances) / len(variances) == pytest.approx(true, rel=0.1)
    by_image = clustered_variance(values, torch.arange(IMAGES))
    assert by_image < true / 2  # as if four pictures of a sign were four signs


def test_a_difference_and_its_interval() -> None:
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(300):
        scores = simulated(generator, {"a": 0.2, "b": 0.0})
        found = Comparison(scores, [GROUP_V, GROUP_V], SCORE).difference("a", "b")
        held += abs(found.mean - 0.2) < 1.96 * found.error
    assert 0.9 < held / 300 < 0.99
    by_hand = sum(float((scores["a", fold] - scores["b", fold])[SCORE].mean()) for fold in (0, 1)) / 2
    assert found.mean == pytest.approx(by_hand)
    assert Comparison(scores, [GROUP_V] * 2, CORRECT).difference("a", "a") == Estimate(0.0, 0.0)


def test_effects_are_given_from_the_mean_candidate() -> None:
    """A fold that is easy for all makes none of them better."""
    scores = {(name, fold): torch.full((2, IMAGES), value + 10.0 * fold, dtype=torch.float64)
              for (name, value), fold in itertools.product({"a": 3.0, "b": 2.0, "c": 1.0}.items(), range(2))}
    found = Comparison(scores, [GROUP_V, GROUP_V], SCORE)
    assert found.contrast({"a": 1.0}).mean == pytest.approx(1) and found.contrast({"c": 1.0}).mean == pytest.approx(-1)
    assert found.difference("b", "c").mean == pytest.approx(1)


def test_a_difference_on_half_of_the_images_is_smaller_and_less_sure_on_all_of_them() -> None:
    measured = Estimate(10.0, 2.0)
    whole, half = on_all_images(measured, 1.0, 1), on_all_images(measured, 0.5, 2)
    assert whole.mean == 10.0 and half.mean == pytest.approx(4.0)
    assert whole.error == pytest.approx(((1 + 1 / 3) * 4 + 2.5**2) ** 0.5)  # the factor's error and one training's noise
    assert half.error == pytest.approx(((0.4**2 + 2 / 3) * 4 + 2.5**2) ** 0.5)  # of one training, not of two
    generator = torch.Generator().manual_seed(5)
    table = verdict(simulated(generator, {"none": -0.5, "trivial": 0.0, "few": 1.0}), [GROUP_V] * 2,
                    {"none": "fixed", "trivial": "fixed", "few": "found"}, "trivial", part=0.5)
    assert table.of("few").expected == on_all_images(table.of("few").points, 0.5, 2)


def test_effects_that_are_noise_are_shrunken_to_their_mean() -> None:
    centre, variance = random_effects([Estimate(x, 1.0) for x in (-0.5, 0.1, 0.4)])
    assert centre.mean == pytest.approx(0, abs=1e-9) and centre.error == pytest.approx(3**-0.5) and variance == 0
    centre, variance = random_effects([Estimate(x, 0.1) for x in (-2.0, 0.0, 2.0)])
    assert centre.mean == pytest.approx(0, abs=1e-9) and variance == pytest.approx(4.0 - 0.01)


def test_shrinkage_takes_the_luck_out_of_the_best_of_many() -> None:
    generator = torch.Generator().manual_seed(2)
    raw, shrunken = [], []
    for _ in range(100):
        truth = {f"c{k}": 0.1 * float(torch.randn((), generator=generator)) for k in range(12)}
        scores = simulated(generator, {"reference": 0.0, **truth})
        kinds = {"reference": "fixed", **dict.fromkeys(truth, "found")}
        rows = [row for row in standings(scores, [GROUP_V] * 2, kinds, "reference") if row.kind == "found"]
        lead = truth[rows[0].name] - sum(truth.values()) / 12
        raw.append(rows[0].score.mean - sum(row.score.mean for row in rows) / 12 - lead)
        shrunken.append(rows[0].shrunken.mean - sum(row.shrunken.mean for row in rows) / 12 - lead)
    assert sum(raw) / 100 > 0.03
    assert abs(sum(shrunken)) < 0.6 * sum(raw)


KINDS = {"none": "fixed", "trivial": "fixed", "few": "found", "tilted": "found"}


def test_a_found_policy_wins_where_it_is_told_apart_and_else_the_best_fixed_one() -> None:
    generator = torch.Generator().manual_seed(3)
    clear = verdict(simulated(generator, {"none": -0.5, "trivial": 0.0, "few": 1.0, "tilted": 0.9}), [GROUP_V] * 2, KINDS,
                    "trivial")
    assert clear.told_apart and clear.winner in ("few", "tilted") and clear.best_fixed == "trivial"
    worse = verdict(simulated(generator, {"none": 0.9, "trivial": 0.0, "few": -1.0, "tilted": 0.1}), [GROUP_V] * 2, KINDS,
                    "trivial")
    assert not worse.told_apart and worse.winner == worse.best_fixed == "none"
    assert worse.of("few").points.mean < 0


def test_against_a_target_the_better_score_is_enough() -> None:
    generator, unclear = torch.Generator().manual_seed(5), 0
    for _ in range(30):
        scores = simulated(generator, {"none": -0.5, "trivial": 0.0, "few": 0.05, "tilted": -0.5})
        careful, bold = (verdict(scores, [GROUP_V] * 2, KINDS, "trivial", margin=margin)
                         for margin in (MARGIN, MARGIN_ON_TARGET))
        gain = Comparison(scores, [GROUP_V] * 2, SCORE).difference("few", bold.best_fixed)
        assert (bold.winner == "few") == (gain.mean > 0)
        assert careful.told_apart == bold.told_apart == (gain.mean > gain.error)
        assert careful.winner == ("few" if careful.told_apart else careful.best_fixed)
        unclear += careful.winner != bold.winner
    assert unclear >= 3


def test_equal_policies_are_seldom_told_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    effects = dict.fromkeys(KINDS, 0.0)
    told = sum(verdict(simulated(generator, effects), [GROUP_V] * 2, KINDS, "trivial").told_apart for _ in range(100))
    assert told < 40


def test_fixed_policies_that_are_not_told_apart_are_ranked_by_their_scores() -> None:
    generator, tied = torch.Generator().manual_seed(4), 0
    kinds = {**dict.fromkeys(("none", "trivial", "rand"), "fixed"), "found": "found"}
    for _ in range(20):
        scores = simulated(generator, dict.fromkeys(kinds, 0.0))
        table = [each for each in standings(scores, [GROUP_V] * 2, kinds, "trivial") if each.kind == "fixed"]
        if len({each.shrunken.mean for each in table}) == 1:  # as much difference as noise makes: no variance is left
            tied += 1
            assert table[0].score.mean == max(each.score.mean for each in table)
    assert tied >= 5


def test_a_found_policy_is_held_against_the_best_fixed_one_itself_not_against_its_shrunken_score() -> None:
    """A poor fixed policy shrinks a good one towards it; that is no lead of a found one that is as good."""
    generator = torch.Generator().manual_seed(6)
    noise = {name: torch.randn(IMAGES, generator=generator, dtype=torch.float64) for name in KINDS}
    level = {"none": 0.3, "trivial": -0.3, "few": 0.301, "tilted": 0.0}
    scores = {(name, fold): (level[name] + 0.2 * noise[name]).expand(2, IMAGES) for name in KINDS for fold in range(2)}
    assert not verdict(scores, [GROUP_V] * 2, KINDS, "trivial").told_apart
    sure = {key: (0.001 * noise[key[0]] + level[key[0]]).expand(2, IMAGES) for key in scores}
    assert verdict(sure, [GROUP_V] * 2, KINDS, "trivial").winner == "few"


def test_folds_of_one_group_each_are_pooled() -> None:
    groups = [torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)]
    scores = {(name, fold): torch.full((2, 20), value[fold], dtype=torch.float64)
              for name, value in {"few": (1.0, 3.0), "none": (0.0, 0.0)}.items() for fold in range(2)}
    found = Comparison(scores, groups, SCORE).difference("few", "none")
    assert found.mean == 2.0 and found.error == pytest.approx(1.5 ** 0.5)  # the error of the mean of 1 and 3 is 1


def test_a_fold_of_one_group_has_the_error_of_an_image() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert clustered_variance(values, torch.zeros(50, dtype=torch.long)) == pytest.approx(float(values.var()))
    assert clustered_variance(values[:1], torch.zeros(1, dtype=torch.long)) == 0


def test_a_trial_in_which_nothing_was_learned_hands_over_no_found_policy() -> None:
    generator = torch.Generator().manual_seed(0)

    def guessed(right: float) -> torch.Tensor:
        return torch.stack([torch.randn(400, generator=generator, dtype=torch.float64),
                            (torch.arange(400) < 400 * right).double()])

    kinds = {"tone": "found", "rand": "fixed", "none": "fixed"}
    groups = [torch.arange(400)] * 2
    noise = {(name, fold): guessed(0.26) for name in kinds for fold in (0, 1)}
    for fold in (0, 1):
        noise["tone", fold][SCORE] += 1
    assert verdict(noise, groups, kinds, "rand", margin=MARGIN_ON_TARGET).winner == "tone"
    labels = torch.arange(400) % 4
    guesses = [torch.stack([torch.full((400,), 2.0), (labels == 0).double()])] * 2  # the scores above are worse
    blind = verdict(noise, groups, kinds, "rand", margin=MARGIN_ON_TARGET, guesses=guesses)
    assert (blind.winner, blind.learned, blind.told_apart) == ("none", False, False)
    better = {**noise, ("rand", 0): guessed(0.4)}
    learned = verdict(better, groups, kinds, "rand", margin=MARGIN_ON_TARGET, guesses=guesses)
    assert learned.learned and learned.winner == "tone"
    alone, five, nothing = [torch.arange(5)], [torch.arange(400) // 80], [torch.zeros(2, 5)]
    assert not better_than_guessing({("none", 0): torch.zeros(2, 5)}, alone, nothing)  # no box is found
    assert better_than_guessing({("none", 0): torch.full((2, 5), 0.001)}, alone, nothing)
    assert better_than_guessing({("none", 0): guessed(0.4)}, groups[:1], guesses[:1])  # seven standard errors
    in_fives = [torch.stack([guesses[0][SCORE], (five[0] == 0).double()])]
    assert not better_than_guessing({("none", 0): guessed(0.4)}, five, in_fives)  # 80 images of a thing are one guess


def test_a_rare_class_that_was_learned_is_seen_in_the_score() -> None:
    """133 and 7 images: a guess is right on 95 %, and three standard errors above that are more than 100 %."""
    labels = (torch.arange(140) < 7).long()
    guess = torch.stack([torch.tensor([133 / 140, 7 / 140]).double().log()[labels], (labels == 0).double()])
    groups = [torch.arange(140)]
    known = torch.stack([torch.full((140,), -0.01).double(), torch.ones(140).double()])
    assert better_than_guessing({("none", 0): known}, groups, [guess])
    assert not better_than_guessing({("none", 0): guess}, groups, [guess])
    luck = guess + 0.1 * torch.randn(2, 140, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert not better_than_guessing({("none", 0): luck}, groups, [guess])


def test_where_one_class_validates_nothing_is_said_of_guesses() -> None:
    scores = {(name, 0): torch.stack([torch.linspace(-1, 0, 20).double() - gain, torch.ones(20).double()])
              for name, gain in (("none", 0.5), ("rand", 0.0))}
    guess = torch.stack([torch.zeros(20).double(), torch.ones(20).double()])
    assert verdict(scores, [torch.arange(20)], dict.fromkeys(("none", "rand"), "fixed"), "none", guesses=[guess]).learned


def test_of_one_validation_image_nothing_is_told_apart() -> None:
    scores = {(name, 0): torch.full((2, 1), value, dtype=torch.float64)
              for name, value in (("none", 0.1), ("rand", 0.2), ("tone", 0.3))}
    kinds = {"none": "fixed", "rand": "fixed", "tone": "found"}
    for margin in (MARGIN, MARGIN_ON_TARGET):
        found = verdict(scores, [torch.zeros(1, dtype=torch.long)], kinds, "none", margin=margin)
        assert (found.winner, found.told_apart) == ("none", False)


def test_the_best_of_six_equal_policies_is_seldom_handed_over_for_none() -> None:
    """By a standard error alone it would be in a quarter of the cases: the best of five is better than the sixth by luck."""
    generator, by_error, handed_over = torch.Generator().manual_seed(8), 0, 0
    kinds = dict.fromkeys(("none", "random", "uniform", "one-op", "trivial", "rand"), "fixed")
    for _ in range(100):
        scores = simulated(generator, dict.fromkeys(kinds, 0.0))
        found = verdict(scores, [GROUP_V] * 2, kinds, "none")
        gain = Comparison(scores, [GROUP_V] * 2, SCORE).difference(found.best_fixed, "none")
        by_error += gain.mean > gain.error
        handed_over += found.winner != "none"
    assert by_error > 20 and handed_over < 0.4 * by_error, (by_error, handed_over)


def test_ties_of_fixed_policies_go_to_none() -> None:
    generator = torch.Generator().manual_seed(3)
    kinds = {"none": "fixed", "rand": "fixed", "trivial": "fixed"}
    for gain, winner in ((0.02, "none"), (0.5, "rand")):
        scores = simulated(generator, {"none": 0.0, "trivial": -0.1, "rand": gain}, noise=0.3)
        scores = {(name, fold): value - value.mean(1, keepdim=True) + {"none": 0.0, "trivial": -0.1, "rand": gain}[name]
                  for (name, fold), value in scores.items()}  # the measured differences are the true ones
        found = verdict(scores, [GROUP_V, GROUP_V], kinds, "trivial")
        assert (found.winner, found.best_fixed) == (winner, "rand")
        assert verdict(scores, [GROUP_V, GROUP_V], kinds, "trivial", margin=MARGIN_ON_TARGET).winner == "rand"
    without = {key: value for key, value in scores.items() if key[0] != "none"}  # its training diverged
    assert verdict(without, [GROUP_V, GROUP_V], kinds, "trivial").winner == "rand"
