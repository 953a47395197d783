"""A trial: determinism, pairs of seeds, resumption, and what it refuses."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from dada_det.augment.named import TrivialAugment, resolve_policy
from dada_det.augment.transform import PolicyTransform
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.engine.compare import trial
from dada_det.engine.compare.trial import METRICS, Recipe, TrainBatches, run_trial
from dada_det.engine.runtime.hooks import progress_line
from dada_det.errors import UserError
from dada_det.models.classifiers import OWN, build_classifier, convnet
from tests.messages import refused

RECIPE = Recipe(model="convnet", classes=3, image_size=16, epochs=4, batch_size=8, lr=0.05, weight_decay=5e-4, mirror=True)


def images(n: int, seed: int, spread: float = 60) -> MemoryImages:
    """Noise around a brightness of each of three classes, uint8 [n,3,18,18]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = 70 + 50 * labels[:, None, None, None] + spread * torch.randn(n, 3, 18, 18, generator=generator)
    return MemoryImages(pixels.clamp(0, 255).byte(), labels)


TRAIN, TEST = images(50, 1), images(60, 2, spread=110)


def run(work_dir: Path, policy: str = "random", seed: int = 0, recipe: Recipe = RECIPE, **options) -> dict[str, float]:
    return run_trial(TRAIN, TEST, policy=resolve_policy(policy, seed), recipe=recipe, seed=seed, work_dir=work_dir,
                     quiet=True, **options)


def test_it_learns_and_writes_its_result_alone(tmp_path: Path) -> None:
    figures = run(tmp_path, "none", recipe=replace(RECIPE, epochs=10))
    assert figures["top1"] > 60 and figures["top5"] == 100
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
    written = json.loads((tmp_path / METRICS).read_text())
    assert {name: written[name] for name in figures} == figures
    assert written["identity"]["epochs"] == 10 and written["hardware"] and written["versions"]["torch"]


def test_no_closed_log_file_stays_with_the_current_logger(tmp_path: Path) -> None:
    """mmengine's init_weights writes into every file of the current logger, whoever opened it."""
    run(tmp_path, "none", recipe=replace(RECIPE, epochs=1))
    assert not [handler for handler in MMLogger.get_current_instance().handlers if isinstance(handler, logging.FileHandler)]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights after each training, in order."""
    weights = []

    def train(runner, train=trial.TrialRunner.train):
        model = train(runner)
        weights.append(model.state_dict())
        return model

    monkeypatch.setattr(trial.TrialRunner, "train", train)
    return weights


@pytest.mark.parametrize("policy", ["random", "trivial"])
def test_the_same_call_gives_the_same_weights_and_another_seed_others(policy: str, tmp_path: Path, trained: list) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, policy, seed)
    a, b, c = trained
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["network.0.weight"], c["network.0.weight"])
    assert (tmp_path / "a" / METRICS).read_bytes() == (tmp_path / "b" / METRICS).read_bytes()


def test_equal_seeds_share_weights_order_and_crops_whatever_the_policy(tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """What the policy is given is the same image by image; what the first step starts from too."""
    starts, given = [], []

    def begin(batches, epoch, set_epoch=TrainBatches.set_epoch):
        set_epoch(batches, epoch)
        batches.transform = lambda pixels, generator, inner=batches.transform: (given[-1].append(pixels.clone()),
                                                                                inner(pixels, generator=generator))[1]

    def load_or_resume(runner, load_or_resume=trial.TrialRunner.load_or_resume):
        load_or_resume(runner)
        starts.append(torch.cat([value.flatten() for value in runner.model.parameters()]).detach().clone())

    monkeypatch.setattr(TrainBatches, "set_epoch", begin)
    monkeypatch.setattr(trial.TrialRunner, "load_or_resume", load_or_resume)
    for policy, seed in (("none", 3), ("random", 3), ("trivial", 3), ("none", 4)):
        given.append([])
        run(tmp_path / f"{policy}{seed}", policy, seed, replace(RECIPE, epochs=1))
    first, *others = [torch.cat(pixels) for pixels in given]
    assert torch.equal(first, others[0]) and torch.equal(first, others[1]) and not torch.equal(first, others[2])
    starts = starts[::2]  # before training; the other half is from before the test
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2]) and not torch.equal(starts[0], starts[3])


def test_batches_are_crops_and_flips_with_the_policy_on_top() -> None:
    policy = resolve_policy("one-op")
    plain, augmented = ([batch for batch in TrainBatches(TRAIN, RECIPE, p, 5)] for p in (None, policy))
    assert len(plain) == len(augmented) == 6
    for step, (before, after) in enumerate(zip(plain, augmented, strict=True)):
        assert before["image"].shape == (8, 3, 16, 16) and torch.equal(before["label"], after["label"])
        expected = PolicyTransform(policy)(before["image"], generator=generator_for(5, trial.DRAWS, step))
        assert torch.equal(after["image"], expected) and not torch.equal(after["image"], before["image"])
    assert isinstance(resolve_policy("trivial"), TrivialAugment)
    corners = {(y, x) for y in range(3) for x in range(3)}
    for image, label in zip(plain[0]["image"], plain[0]["label"], strict=True):
        sources = TRAIN.images_NCHW[TRAIN.labels_N == label]
        assert any(torch.equal(image, side) for source in sources for y, x in corners
                   for side in (source[:, y:y + 16, x:x + 16], source[:, y:y + 16, x:x + 16].flip(-1)))


def test_a_trial_cut_short_goes_on_to_the_same_result(tmp_path: Path, trained: list,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, whose random numbers are in no checkpoint, and weights whose mean begins before the cut."""
    monkeypatch.setitem(OWN, "dropout", lambda n: nn.Sequential(*convnet(64)[:-1], nn.Dropout(), nn.Linear(64, n)))
    recipe = replace(RECIPE, model="dropout", average=0.7)
    whole = run(tmp_path / "whole", recipe=recipe)
    state = {name: value.clone() for name, value in trained[-1].items()}
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)
    epochs = []

    def interrupted(batches, epoch, set_epoch=TrainBatches.set_epoch):
        epochs.append(epoch)
        if epochs == [0, 1, 2]:
            raise KeyboardInterrupt
        set_epoch(batches, epoch)

    monkeypatch.setattr(TrainBatches, "set_epoch", interrupted)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(cut, recipe=recipe)
    assert [path.name for path in cut.rglob("*.pth")] == ["epoch_2.pth"] and not (cut / METRICS).exists()
    with refused("epoch_2.pth", "lr 0.05 instead of 0.1", "--work-dir"):
        run(cut, recipe=replace(recipe, lr=0.1), resume=True)
    assert run(cut, recipe=recipe, resume=True) == whole
    assert epochs[3:] == [2, 3]
    assert all(torch.equal(value, state[name]) for name, value in trained[-1].items())
    assert (cut / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()
    assert [path.name for path in cut.iterdir()] == [METRICS]


def test_the_mean_weights_of_the_last_steps_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {"loss": [], "predict": []}

    def forward(self, images, labels=None, mode="tensor", forward=trial.classifier.Classifier.forward):
        seen[mode].append(self.network[0].weight.detach().clone())
        return forward(self, images, labels, mode)

    monkeypatch.setattr(trial.classifier.Classifier, "forward", forward)
    run(tmp_path / "last", recipe=RECIPE)
    steps, last = seen["loss"][1:] + seen["predict"][:1], seen["predict"][-1]  # the weights after each step
    assert len(steps) == 24 and torch.equal(steps[-1], last)
    run(tmp_path / "mean", recipe=replace(RECIPE, average=0.25))
    assert torch.allclose(seen["predict"][-1], torch.stack(steps[-6:]).mean(0), atol=1e-6)
    assert not torch.allclose(seen["predict"][-1], last, atol=1e-5)


def test_a_trial_starts_from_the_weights_of_its_recipe(tmp_path: Path, trained: list) -> None:
    """Of a network too that mmengine would have draw its weights anew."""
    torch.manual_seed(11)
    start = build_classifier("resnet10t", num_classes=3, image_size=16).state_dict()
    torch.save(start, tmp_path / "start.pth")
    run(tmp_path / "trial", recipe=replace(RECIPE, model="resnet10t", epochs=1, weights=str(tmp_path / "start.pth"), lr=0.0))
    assert all(torch.equal(trained[-1][f"network.{name}"], value) for name, value in start.items() if "weight" in name)


def test_a_finished_trial_is_read_and_another_ones_folder_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = run(tmp_path, "uniform")
    with monkeypatch.context() as patched:
        patched.delattr(trial, "build_runner")
        assert run(tmp_path, "uniform", resume=True) == figures
        for changes in ({"policy": "none"}, {"seed": 1}, {"recipe": replace(RECIPE, epochs=9)}):
            with pytest.raises(UserError, match="is of another run"):
                run(tmp_path, resume=True, **{"policy": "uniform", **changes})
        with refused(re.compile(r"data \w+ instead of \w+")):
            run_trial(TRAIN, TRAIN, policy=resolve_policy("uniform"), recipe=RECIPE, seed=0, work_dir=tmp_path, resume=True)
    assert run(tmp_path, "none", recipe=replace(RECIPE, epochs=1)) is not None  # without resume the folder is its own


def test_what_does_not_fit_is_said_before_anything_is_removed(tmp_path: Path) -> None:
    figures = run(tmp_path, "none", recipe=replace(RECIPE, epochs=1))
    with refused("51", "50 training images"):
        run(tmp_path, "none", recipe=replace(RECIPE, batch_size=51))
    with refused("20 px", "18 px"):
        run(tmp_path, "none", recipe=replace(RECIPE, image_size=20, padding=4))
    assert json.loads((tmp_path / METRICS).read_text())["top1"] == figures["top1"]


def test_nothing_that_a_trial_has_not_written_is_removed(tmp_path: Path) -> None:
    """Files and folders that look as if: checkpoints, a log, a date."""
    names = ("epoch_1.pth", "last_checkpoint", "20240101_120000.log", "20240101_2/notes.txt", "2023_holiday/1.jpg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    short = replace(RECIPE, epochs=1)
    run(tmp_path, "none", recipe=short)
    for resume in (False, True):
        run(tmp_path, "none", recipe=short, resume=resume)
    assert all((tmp_path / name).read_text() == name for name in names)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == len(names) + 1


def test_what_stands_in_a_trials_place_and_is_not_its_own_is_refused(tmp_path: Path) -> None:
    for name in (METRICS, f"{trial.UNFINISHED}/mine.txt"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text('{"top1": 76.0}')
        for resume in (False, True):
            with pytest.raises(UserError, match=rf"{name.partition('/')[0]} (is not a trial's|was not made by a run)"):
                run(folder, "none", recipe=replace(RECIPE, epochs=1), resume=resume)
        assert (folder / name).read_text() == '{"top1": 76.0}'


def test_an_unfinished_trial_is_begun_again_without_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trial.TrialRunner, "test", lambda runner: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path)
    assert list(tmp_path.rglob("*.pth"))
    run(tmp_path, "none")  # another trial: without --resume the folder is its own
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_a_loss_that_becomes_infinite_is_a_sentence_and_no_result(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        run(tmp_path, "none", recipe=replace(RECIPE, lr=1e30))
    assert not (tmp_path / METRICS).exists()


def test_bfloat16_is_for_the_training_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []

    def network(classes):
        built = convnet(classes)
        built.register_forward_hook(lambda module, inputs, logits: kinds.append((module.training, logits.dtype)))
        return built

    monkeypatch.setitem(OWN, "watched", network)
    figures = run(tmp_path, "none", recipe=replace(RECIPE, model="watched", precision="bfloat16"))
    assert set(kinds) == {(True, torch.bfloat16), (False, torch.float32)} and figures["top1"] > 33


def test_progress_of_long_trials_only(tmp_path: Path, capsys: pytest.CaptureFixture,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"policy": None, "recipe": RECIPE, "seed": 0}
    run_trial(TRAIN, TEST, work_dir=tmp_path / "short", **arguments)
    assert capsys.readouterr().out == ""
    clock = iter(range(0, 10**6, 4))
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: next(clock))  # four seconds a look
    run_trial(TRAIN, TEST, work_dir=tmp_path / "long", **arguments)
    lines = capsys.readouterr().out.splitlines()
    assert 3 < len(lines) < 24 and all(line.startswith("trial  long  epoch") and "ETA" in line for line in lines)
