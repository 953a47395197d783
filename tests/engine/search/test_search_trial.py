"""The trial at the end of a search: planted data, a search cut short, several processes, and the files that it writes."""

import itertools
import json
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dada_det.augment import apply_operation
from dada_det.augment.named import resolve
from dada_det.augment.operations import OPERATIONS
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.data.memory import MemoryImages
from dada_det.engine.search import trainings, trial
from dada_det.engine.search.handover import hand_over, sentence, table_of
from dada_det.engine.search.problems import halves_in_turn
from dada_det.engine.search.trainings import Fold, ImageTrainings, StoredTensors, shared_out
from dada_det.engine.search.trial import Trial
from dada_det.models.classifiers import build_classifier
from dada_det.search.training import TrainingRecipe
from dada_det.search.verdict import Estimate, Standing, Verdict
from tests.messages import assert_names, refused

SIDE, CLASSES = 12, 3


def pictures(n: int, seed: int, inverted: bool = False) -> MemoryImages:
    """Dark images whose class is the place of a bright bar; inverted they are bright with a dark one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.randint(0, 50, (n, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label:4 * label + 3] += 150
    if inverted:
        images = apply_operation(images, "Invert", torch.ones(n))
    return MemoryImages(images, labels)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - 128) / 64


def make(folder: Path, folds: list[Fold] | None = None, seed: int = 0) -> Trial:
    folds = folds or [Fold(pictures(60, 1), pictures(60, 2, inverted=True), torch.arange(60))]
    images = ImageTrainings(folds, whole=60, target=True, image_size=SIDE, padding=0, mirror=False, batch_size=12, seed=seed,
                            normalise=normalise)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d((12, 1)),
                            nn.Flatten(), nn.Linear(96, CLASSES))
    return Trial(images, network, TrainingRecipe(steps=1, lr=0.05, weight_decay=1e-4), 8, seed, folder)


def test_what_the_target_asks_for_is_found_and_beats_the_fixed_policies(tmp_path: Path,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    ours = make(tmp_path)
    found, policies, effects = ours.run({})
    assert effects[0].name in [name for name in OPERATIONS if OPERATIONS[name].kind not in ("affine", "box")]
    best = found.table[0]
    assert {standing.name for standing in found.table} >= set(ImageTrainings.fixed)
    assert best.shrunken.mean >= found.of("none").shrunken.mean
    assert found.of("none").accuracy < 60 < best.accuracy
    said = hand_over(ours, found, policies, effects, tmp_path, mirror=False, provenance={"method": "dada"})
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert written["winner"] == found.winner and written["sentence"] == said and written["trainings"] == len(ours.scores)
    assert len(written["candidates"]) == len(found.table) and found.winner in table_of(found, "trivial")
    _, mirror = resolve(str(tmp_path / "policy.json"))
    assert mirror is False and json.loads((tmp_path / "policy.json").read_text())["provenance"]["winner"] == found.winner
    assert [row["name"] for row in json.loads((tmp_path / "effects.json").read_text())["operations"]] == \
        [effect.name for effect in effects]
    assert "search  trial  8/8" in capsys.readouterr().out
    assert 0 < ours.cost < 12


def test_the_sentence_says_how_clear_the_winner_is() -> None:
    same = Estimate(0.0, 1.0)
    kinds = {"tone": "found", "rand": "fixed"}
    table = tuple(Standing(name, kind, 50.0, same, same, same, same) for name, kind in kinds.items())
    clear, unclear, fixed = (sentence(Verdict(winner, "rand", told, table), "trivial", 20)
                             for winner, told in (("tone", True), ("tone", False), ("rand", False)))
    assert_names(clear, "`tone`", "is better than", "rand", "20 validation images")
    assert_names(unclear, "`tone`", "is not clearly better", "rand", "20 validation images")
    assert_names(fixed, "nothing", "`rand` is handed over")
    tie = sentence(Verdict("none", "rand", False, (*table, Standing("none", "fixed", 50.0, *[same] * 4))), "rand", 20)
    assert_names(tie, "no fixed policy is clearly better than none", "20 validation images", "clearly better than rand",
                 "`none` is handed over")
    assert "points" not in clear  # trivial has no row: its training diverged
    compared, itself = (sentence(Verdict("rand", "rand", False, table), reference, 20) for reference in ("tone", "rand"))
    assert compared.endswith("; in a training on all images +0.0 ± 1.0 points to tone are expected")
    assert itself.endswith("`rand` is handed over")
    blind = sentence(Verdict("rand", "rand", False, table, learned=False), "tone", 20)
    assert_names(blind, "better than guessing", "20 validation images", "`rand` is handed over", "--epochs", "--weights")
    assert "points" not in blind


@pytest.mark.parametrize("bad", [{"geometry"}, {"none"}, {"random", "uniform", "one-op", "tone", "geometry"},
                                 {"none", "random", "uniform", "one-op", "rand", "tone", "geometry"}], ids=len)
def test_candidates_that_diverge_are_left_out_and_named(bad: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    ours, plain = make(tmp_path), trial.train
    ours.epochs = 1
    names = iter([*ours.data.fixed, "tone", "geometry"])

    def diverging(network: nn.Module, *args: Any, **options: Any) -> None:
        plain(network, *args, **options)
        if next(names) in bad:
            for parameter in network.parameters():
                parameter.detach().fill_(float("nan"))

    monkeypatch.setattr(trial, "train", diverging)
    found, policies, effects = ours.run({})
    assert bad.isdisjoint(policies) and bad.isdisjoint(each.name for each in found.table)
    assert len(found.table) == 8 - len(bad)
    hand_over(ours, found, policies, effects, tmp_path, mirror=False, provenance={})
    assert json.loads((tmp_path / "verdict.json").read_text())["trainings"] == ours.trained == 8
    [line] = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert_names(line, *bad, "infinite")
    assert len(json.loads((tmp_path / "effects.json").read_text())["operations"]) == len(OPERATIONS)


def test_a_result_is_of_what_the_policy_does_not_of_its_name(tmp_path: Path) -> None:
    """What alignment proposes can change under one name, if a damaged checkpoint made it compute its last epochs anew."""
    ours = make(tmp_path / "one")
    ours.epochs = 1
    invert, shift = (Policy("strength", (SubPolicy(1.0, (Operation(name, 1.0, 0.5),)),))
                     for name in ("Invert", "TranslateX"))
    before = ours.train({"aligned": invert})
    after = ours.train({"aligned": shift})
    fresh = make(tmp_path / "two")
    fresh.epochs = 1
    assert torch.equal(after["aligned", 0], fresh.train({"aligned": shift})["aligned", 0])
    assert not torch.equal(after["aligned", 0], before["aligned", 0])


def test_a_damaged_result_is_computed_anew(tmp_path: Path) -> None:
    results = StoredTensors(tmp_path)
    results.put("whole", torch.ones(3))
    for damage in (lambda raw: b"", lambda raw: raw[:-40], lambda raw: raw[:200] + b"x" + raw[201:]):
        results.put("one", torch.ones(3))
        path = results.path("one")
        path.write_bytes(damage(path.read_bytes()))
        assert [value.tolist() for _, value in shared_out(["whole", "one"], StoredTensors(tmp_path),
                                                          lambda name: torch.zeros(3))] == [[1.0] * 3, [0.0] * 3]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    results, before = StoredTensors(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with "File too large"
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with refused("cannot write", results.path("one")):
            results.put("one", torch.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert results.get("one") is None and not list(tmp_path.glob(".*"))


def test_a_trial_whose_fixed_policies_all_diverge_says_so(tmp_path: Path) -> None:
    ours = make(tmp_path)
    ours.recipe, ours.epochs = replace(ours.recipe, lr=float("inf"), clip_grad=None), 1
    with refused("infinite", "weights_optimizer.lr", "--no-trial"):
        ours.run({})


def test_a_part_of_the_images_is_on_the_device_once(tmp_path: Path) -> None:
    images = pictures(8, 1)
    first, second = halves_in_turn(images, [0, 1, 2, 3], [4, 5, 6, 7], list(range(8)))
    assert first.train is second.val and first.val is second.train
    shares, frequent = make(tmp_path, [first, second]).data.guess(0)  # the classes are 1, 2, 0, 1
    assert shares.exp().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.5]) and frequent.tolist() == [1, 0, 0, 1]
    assert first.groups_V.tolist() == [4, 5, 6, 7] and second.groups_V.tolist() == [0, 1, 2, 3]


def test_policies_of_other_operations_are_compared_and_not_handed_over(tmp_path: Path) -> None:
    ours = make(tmp_path)
    ours.operations, ours.epochs = ("Color", "Brightness", "Contrast"), 1
    found, _, _ = ours.run({})
    kinds = {each.name: each.kind for each in found.table}
    assert kinds == {"none": "fixed", "tone": "found", **dict.fromkeys(("random", "uniform", "one-op", "trivial", "rand"),
                                                                       "outside")}
    assert found.winner in ("none", "tone") and found.best_fixed == "none"


def scores_of(ours: Trial) -> dict[Any, list[float]]:
    ours.run({})
    return {key: value.flatten().tolist() for key, value in ours.scores.items()}


def test_a_trial_cut_short_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores_of(make(tmp_path / "whole"))
    calls, plain = itertools.count(), trial.train

    def interrupted(*args: Any, **options: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        plain(*args, **options)

    monkeypatch.setattr(trial, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut").run({})
    assert len(list((tmp_path / "cut").glob("*_fold*.pth"))) == 5
    counted = []
    monkeypatch.setattr(trial, "train", lambda *args, **options: (counted.append(1), plain(*args, **options)))
    assert scores_of(make(tmp_path / "cut")) == whole
    assert len(counted) == len(list((tmp_path / "whole").glob("*_fold*.pth"))) - 5


def test_trainings_are_shared_out_over_processes_and_everyone_knows_all(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[str]] = [[], []]
    stores = [StoredTensors(tmp_path / str(rank)) for rank in range(2)]
    stores[1].put("b", 2)  # from a run that was cut short
    gathered: list[list[Any]] = []

    def gather(everyone: list[Any], own: Any, group: Any) -> None:
        assert group == ("gloo", trainings.PATIENCE)  # another's whole training may take longer than the group waits
        gathered[-1].append(own)
        everyone[:] = other[len(gathered[-1]) - 1], own

    # Rank 0's answers by hand: it knows nothing at first, then has done the first and third of a, c, d.
    other: list[Any] = [[], {"a": "a!", "d": "d!"}]
    gathered.append([])
    monkeypatch.setattr(trainings, "world", lambda: (1, 2))
    monkeypatch.setattr(trainings.dist, "all_gather_object", gather)
    monkeypatch.setattr(trainings.dist, "new_group", lambda backend, timeout: (backend, timeout))
    result = dict(shared_out("abcd", stores[1], lambda name: (done[1].append(name), name + "!")[1]))
    assert done[1] == ["c"] and result == {"a": "a!", "b": 2, "c": "c!", "d": "d!"}


def test_candidates_of_a_block_see_the_same_crops(tmp_path: Path) -> None:
    fold = Fold(pictures(24, 1), pictures(12, 2), torch.arange(12))
    images = ImageTrainings([fold, fold], whole=24, target=True, image_size=8, padding=0, mirror=True, batch_size=8, seed=3,
                        normalise=normalise)
    first, same, other_step, other_fold = (images.batches(fold, None)(step)
                                           for fold, step in ((0, 5), (0, 5), (0, 4), (1, 5)))
    assert torch.equal(first[0], same[0]) and torch.equal(first[1], same[1]) and first[0].shape == (8, 3, 8, 8)
    assert not torch.equal(first[0], other_step[0]) and not torch.equal(first[0], other_fold[0])
    assert images.steps(2.0) == 3  # of each of two folds
    assert images.part == 1.0 and images.shift  # both folds train on all images
    beside = ImageTrainings([fold], whole=36, target=True, target_trains=True, image_size=8, padding=0, mirror=True,
                            batch_size=8, seed=3, normalise=normalise)
    assert beside.part == 0.5 and not beside.shift  # half of the target's images train
    assert beside.steps(2.0) == 9  # a whole training's


def test_the_network_may_be_any_classifier_of_the_table() -> None:
    network = build_classifier("convnet", num_classes=CLASSES, image_size=SIDE)
    fold = Fold(pictures(24, 1), pictures(12, 2), torch.arange(12))
    images = ImageTrainings([fold], whole=24, target=True, image_size=SIDE, padding=0, mirror=False, batch_size=8, seed=0,
                        normalise=normalise)
    assert images.judge(network, 0).shape == (2, 12)
