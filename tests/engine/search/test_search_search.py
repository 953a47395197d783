"""The search as a command: artefacts, both modes, determinism, --resume, CIFAR-10, and every promised sentence."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.augment import Policy
from dada_det.commands.search import main
from dada_det.data.cifar import write_cifar10
from dada_det.engine.search import run
from tests.conftest import write_noise
from tests.data.standard_files import write_aircraft, write_cars, write_cifar100_binary, write_svhn
from tests.messages import assert_error, assert_names

CONFIG = "configs/debug/search.py"


def write_images(root: Path, classes: int = 3, images: int = 8) -> Path:
    return write_noise(root, classes, images, side=24, spread=40)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train")
    return root


def search(data: Path, work_dir: Path, *flags: str, config: str = CONFIG) -> int:
    """Two epochs, without a trial (test_search_trial_command.py has it)."""
    return main(["--config", config, "--data", str(data), "--work-dir", str(work_dir), "--image-size", "16",
                 "--batch-size", "4", "--epochs", "2", "--no-trial", *flags])


def test_writes_the_policy_and_all_preferences(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path) == 0
    policy = Policy.load(tmp_path / "policy.json")
    assert len(policy.sub_policies) == 25 and policy.ranges == "strength"
    assert [s.weight for s in policy.sub_policies] == sorted((s.weight for s in policy.sub_policies), reverse=True)
    assert all(o.spread == 1.5 for s in policy.sub_policies for o in s.operations)
    assert policy.mirror is True
    provenance = dict(policy.provenance)
    assert provenance.pop("data") and provenance == {"method": "dada", "mode": "default", "config": "search", "seed": 0,
                                                     "groups": "auto", "epoch": 2, "version": "0.1.0"}
    everything = json.loads((tmp_path / "search.json").read_text())
    preferences = [entry["preference"] for entry in everything["sub_policies"]]
    assert len(preferences) == 105 and sum(preferences) == pytest.approx(1) and len(set(preferences)) > 20
    best = sorted(everything["sub_policies"], key=lambda entry: -entry["preference"])[:25]
    assert [(s.weight, *((o.probability, o.magnitude) for o in s.operations)) for s in policy.sub_policies] == [
        (entry["preference"], *((o["probability"], o["magnitude"]) for o in entry["operations"])) for entry in best]
    out = capsys.readouterr().out
    assert "ETA" in out and out.strip().splitlines()[-1].startswith("search  done: 25 of 105 sub-policies in")
    assert [entry["epoch"] for entry in json.loads((tmp_path / "history.json").read_text())["epochs"]] == [1, 2]
    page = (tmp_path / "search.html").read_text()
    assert "Operations over 2 epochs" in page and page.count("<img ") == 4 * 7
    scalars = next(tmp_path.rglob("scalars.json")).read_text().splitlines()
    assert {"preference/Rotate", "probability/Rotate", "strength/Rotate", "step"} <= set(json.loads(scalars[-1]))


def test_tensorboard_shows_the_curves_of_search_html(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert search(data, tmp_path, "--cfg-options", "vis_backends=[TensorboardVisBackend]") == 0
    event_file, = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file.parent))
    events.Reload()
    epochs = json.loads((tmp_path / "history.json").read_text())["epochs"]
    curves = {f"{quantity}/{name}": [(entry["epoch"], pytest.approx(entry["operations"][name][quantity], rel=1e-6))
                                     for entry in epochs]
              for name, quantities in epochs[0]["operations"].items() for quantity in quantities}
    assert len(epochs) == 2 and {curve.partition("/")[0] for curve in curves} == {"preference", "probability", "strength"}
    for curve, expected in curves.items():
        assert [(event.step, event.value) for event in events.Scalars(curve)] == expected


def test_names_that_are_not_utf8_links_to_nothing_and_other_files_are_searched_and_said(
        tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_images(tmp_path / "data" / "train")
    os.rename(root / "class0", os.fsencode(root) + b"/caf\xe9")
    (root / "class1/7.png").unlink()
    os.symlink("/nonexistent/7.png", os.fsencode(root) + b"/class1/\xe97.png")
    (root / "class2/notes.txt").write_text("twelve images")
    assert search(tmp_path / "data", tmp_path / "w") == 0
    out = capsys.readouterr().out
    assert_names(out, "1 files", f"in {root} are", "1 .txt")
    assert_names(out, "1 of 24", f"in {root} did", "class1/?7.png")
    assert len(Policy.load(tmp_path / "w/policy.json").sub_policies) == 25


def write_frames(root: Path, things: int = 12) -> None:
    """Two classes of `things` with four noisy pictures each, under names that say nothing."""
    source = np.random.default_rng(0)
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for _number in range(things):
            thing = Image.fromarray(source.integers(0, 256, (4, 4, 3), np.uint8)).resize((24, 24), Image.Resampling.BICUBIC)
            for _ in range(4):
                noisy = np.asarray(thing, np.int64) + source.integers(-40, 41, (24, 24, 3))
                name = f"class{label}/{source.integers(10 ** 9)}.png"
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / name)


def test_halves_that_leak_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_frames(tmp_path / "data/train")
    assert search(tmp_path / "data", tmp_path / "leaking", "--groups", "none") == 0
    assert "seem to stand in both halves" in capsys.readouterr().out
    assert search(tmp_path / "data", tmp_path / "grouped") == 0  # they are near copies
    out = capsys.readouterr().out
    assert "near copies kept beside their originals" in out and "seem to stand in both halves" not in out


def test_halves_of_a_target_are_held_against_each_other_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """To an image of the target, any of its other half is nearer than what else trains: that is no leak."""
    write_noise(tmp_path / "data/train", 2, 16, side=24, spread=40)
    write_frames(tmp_path / "target")
    flags = ("--val-data", str(tmp_path / "target"), "--target-trains")
    assert search(tmp_path / "data", tmp_path / "leaking", *flags, "--groups", "none") == 0
    assert "seem to stand in both halves" in capsys.readouterr().out
    assert search(tmp_path / "data", tmp_path / "grouped", *flags) == 0
    assert "seem to stand" not in capsys.readouterr().out


def test_a_search_leaves_tf32_as_it_finds_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(run.SearchRunner, "train", lambda self: seen.append(torch.backends.cudnn.allow_tf32))
    for before in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
        search(data, tmp_path)
        assert torch.backends.cudnn.allow_tf32 is before
    assert seen == [False, False]


def test_the_halves_are_of_whole_groups_and_the_rule_is_part_of_what_a_search_is(
        tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_images(tmp_path / "data" / "train")
    for path in sorted((tmp_path / "data" / "train").rglob("*.png")):  # four videos of two frames a class
        path.rename(path.with_name(f"video{int(path.stem) // 2}_{path.name}"))
    assert search(tmp_path / "data", tmp_path / "auto") == 0
    assert_names(capsys.readouterr().out, "12 groups", "class0/video0_*", "--groups none")
    assert search(tmp_path / "data", tmp_path / "none", "--groups", "none") == 0
    assert "halves by" not in capsys.readouterr().out
    rules = [Policy.load(tmp_path / rule / "policy.json").provenance for rule in ("auto", "none")]
    assert [provenance["groups"] for provenance in rules] == ["auto", "none"] and rules[0]["data"] != rules[1]["data"]
    assert search(tmp_path / "data", tmp_path / "auto", "--resume", "--groups", r"class\d/video\d") == 2
    assert "groups" in capsys.readouterr().err
    (tmp_path / "val").symlink_to(tmp_path / "data" / "train")
    for flags, sentence in ((("--groups", "("), "'(' is no regular expression"),
                            (("--groups", "frame"), "matches none of the 24 images"),
                            (("--groups", r"class\d"), "do not make two halves"),
                            (("--groups", "frame", "--val-data", str(tmp_path / "val")), "matches none of the 24 images")):
        assert search(tmp_path / "data", tmp_path / "refused", *flags) == 2
        assert sentence in capsys.readouterr().err
    assert search(tmp_path / "data", tmp_path / "target", "--groups", r"video\d", "--val-data", str(tmp_path / "val")) == 0
    assert_names(capsys.readouterr().out, "standard errors by 4 groups", "video0", "--groups none")


def test_flips_are_said_and_left_out_where_the_flag_says_so(data: Path, tmp_path: Path,
                                                            capsys: pytest.CaptureFixture) -> None:
    for name, flags, mirror in (("flips", (), True), ("none", ("--no-mirror",), False)):
        assert search(data, tmp_path / name, *flags) == 0
        assert ("flipped left to right; --no-mirror" in capsys.readouterr().out) == mirror
        assert Policy.load(tmp_path / name / "policy.json").mirror == mirror


@pytest.mark.parametrize("shifted", [False, True])
def test_what_was_learned_is_saved_as_it_is(shifted: bool, data: Path, tmp_path: Path) -> None:
    """With a rate of 0 a probability stays where it starts, at 1/2, with and without --val-data."""
    target = ["--val-data", str(data / "train")] if shifted else []
    assert search(data, tmp_path, *target, "--epochs", "1", "--cfg-options", "policy_optimizer.lr=0.0") == 0
    assert {o.probability for s in Policy.load(tmp_path / "policy.json").sub_policies for o in s.operations} == {0.5}


@pytest.mark.parametrize("estimator", ["relax", "gumbel", "score"])
def test_paper_mode_with_each_estimator(estimator: str, data: Path, tmp_path: Path) -> None:
    assert search(data, tmp_path, "--cfg-options", "search.mode=paper", f"search.estimator={estimator}") == 0
    policy = Policy.load(tmp_path / "policy.json")
    assert policy.ranges == "autoaugment" and {s.weight for s in policy.sub_policies} == {1.0}
    table = json.loads((tmp_path / "search.json").read_text())["sub_policies"]
    assert json.loads((tmp_path / "search.json").read_text())["optimizer"]["lr"] == 5e-3  # nobody has asked for it
    moved = [s for s in table if any(o["probability"] != 0.5 or o["magnitude"] != 0.5 for o in s["operations"])]
    assert 1 <= len(moved) <= 6  # one draw a batch, three steps in each of two epochs


def test_each_entry_of_the_default_mode_gives_another_policy(data: Path, tmp_path: Path) -> None:
    changes = [[], ["search.draws_per_image=1"], ["search.val_every=1"], ["search.unaugmented=0.0"], ["search.spread=0.8"],
               ["search.warmup_epochs=0"], ["search.ranges=autoaugment"]]
    found = set()
    for number, change in enumerate(changes):
        options = ["--cfg-options", *change] if change else []
        assert search(data, tmp_path / str(number), *options) == 0
        found.add(Policy.load(tmp_path / str(number) / "policy.json").sha256)
    assert len(found) == len(changes)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert search(data, tmp_path / name, "--seed", seed) == 0
    a, b, c = ((tmp_path / name / "policy.json").read_bytes() for name in "abc")
    assert a == b and a != c


@pytest.mark.parametrize("options", [["search.mode=default"], ["search.mode=paper"]])
def test_a_resumed_search_ends_in_the_same_file(options: list[str], data: Path, tmp_path: Path) -> None:
    flags = ("--epochs", "3", "--cfg-options", *options)
    assert search(data, tmp_path / "whole", *flags) == 0
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    shutil.copy(tmp_path / "whole/epoch_2.pth", interrupted)  # all that a kill in the third epoch leaves
    assert search(data, interrupted, "--resume", *flags) == 0
    for name in ("policy.json", "search.json"):
        assert (interrupted / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_resume_without_a_checkpoint_starts_afresh_and_says_so(data: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, "--resume", "--epochs", "1") == 0
    assert "no checkpoint in" in capsys.readouterr().out


def test_validation_data_of_ones_own(data: Path, tmp_path: Path) -> None:
    """With --val-data all training images train: 24 images make six batches of four."""
    other = write_images(tmp_path / "val", classes=2)
    assert search(data, tmp_path / "w", "--val-data", str(other), "--epochs", "1") == 0
    state = torch.load(tmp_path / "w/epoch_1.pth", weights_only=False)
    assert state["meta"]["iter"] == 6


@pytest.mark.parametrize("config", ["configs/search_cifar10.py", "configs/search_cifar10_paper.py"])
def test_cifar10_in_its_binary_files(config: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(80) % 10
    write_cifar10(tmp_path / "cifar", (images, labels), (images[:10], labels[:10]))
    assert main(["--config", config, "--data", str(tmp_path / "cifar"), "--work-dir", str(tmp_path / "w"), "--epochs", "2",
                 "--no-trial", "--batch-size", "20", "--cfg-options", "classifier.name=convnet"]) == 0
    assert len(Policy.load(tmp_path / "w/policy.json").sub_policies) == 25


@pytest.mark.parametrize(("config", "write"), [
    ("configs/search_cifar100.py", partial(write_cifar100_binary, train=400)), ("configs/search_svhn.py", write_svhn),
    (CONFIG, write_cars), (CONFIG, write_aircraft)])
def test_other_published_files(config: str, write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert main(["--config", config, "--data", str(write(tmp_path / "data")), "--work-dir", str(tmp_path / "w"),
                 "--no-trial", "--epochs", "2", "--batch-size", "4", "--image-size", "16", "--cfg-options",
                 "classifier.name=convnet", "data.images_per_class=40"]) == 0
    assert len(Policy.load(tmp_path / "w/policy.json").sub_policies) == 25


def test_a_policy_of_a_smaller_space_searched_without_flips(data: Path, tmp_path: Path) -> None:
    assert search(data, tmp_path, "--cfg-options", "operations=[Invert,Rotate,Cutout]", "mirror=False") == 0
    policy = Policy.load(tmp_path / "policy.json")
    assert len(policy.sub_policies) == 3 and policy.mirror is False


@pytest.mark.parametrize(("flags", "names"), [
    (["--cfg-options", "search.mode=papper"], ("'papper'", "default, paper")),
    (["--cfg-options", "search.estimater=relax"], ("estimater", "mode default")),
    (["--cfg-options", "search.estimator=score"], ("estimator", "mode default", "ranges")),
    (["--cfg-options", "search.mode=paper", "search.estimator=marginal"],
     ("search.estimator is 'marginal'", "relax, score, gumbel")),
    (["--cfg-options", "search.mode=paper", "search.temperature=0"], ("search.temperature is 0", "above 0")),
    (["--cfg-options", "search.ranges=wide"], ("search.ranges is 'wide'", "strength, autoaugment")),
    (["--cfg-options", "search.unaugmented=1.5"], ("search.unaugmented is 1.5", "0 to 1")),
    (["--cfg-options", "search.mode=paper", "search.draws_per_image=2"],
     ("draws_per_image", "mode paper")),
    (["--cfg-options", "search.spread=0"], ("search.spread is 0", "above 0")),
    (["--cfg-options", "search.spread=None"], ("search.spread is None", "above 0")),
    (["--cfg-options", "search.draws_per_image=0"], ("search.draws_per_image is 0", "whole number of at least 1")),
    (["--cfg-options", "search.val_every=0"], ("search.val_every is 0", "whole number of at least 1")),
    (["--cfg-options", "search.mode=paper", "search.val_every=2"], ("val_every", "mode paper")),
    (["--cfg-options", "search=foo"], ("'foo'", "`search`", "dict")),
    (["--cfg-options", "kind=foo"], ("kind", "'foo'")),
    (["--config", "configs/pretrain_r50.py"], ("None", "`search`", "dict")),
    (["--image-size", "2"], ("--image-size", "2", "--batch-size", "4")),
    (["--cfg-options", "operations=[Invert,Blur]"], ("'Blur'",)),
    (["--cfg-options", "operations=[Invert]"], ("two different operations",)),
    (["--batch-size", "13"], ("--batch-size", "13", "12 images")),
    (["--config", "configs/none.py"], ("configs/none.py",)),
    (["--cfg-options", "search.mode=[1,2]"], ("[1, 2]", "default, paper")),
    (["--cfg-options", "base_batch_size=0"], ("base_batch_size = 0", "1 or more")),
    (["--cfg-options", "padding=-4"], ("padding = -4", "0 or more")),
    (["--cfg-options", "data.images_per_class=0"], ("data.images_per_class = 0", "1 or more")),
    (["--cfg-options", "data.images_per_class=-1"], ("data.images_per_class = -1", "1 or more")),
    (["--cfg-options", "precision=bf16"], ("'bf16'", "float32, bfloat16")),
    (["--cfg-options", "method=daas"], ("daas", "architecture_optimizer", "dict(lr=")),
    (["--cfg-options", "classifier.name=resnet51"], ("'resnet51'", "timm.list_models()")),
])
def test_mistakes_get_one_sentence(flags: list[str], names: tuple[str, ...], data: Path, tmp_path: Path,
                                   capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, *flags) == 2
    assert_error(capsys.readouterr().err, "search_imagenet.sh", *names)
    assert not list(tmp_path.rglob("policy.json"))


def test_mistakes_in_the_data_get_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    single = write_images(tmp_path / "single/train", images=1).parent
    stranger = write_images(tmp_path / "stranger", classes=4)
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    for folder, flags, names in (
            (tmp_path / "nowhere", [], (tmp_path / "nowhere", "train/<class>/")),
            (empty, [], (empty / "train", "<class>/<image>")),
            (single, [], ("'class0'", single / "train", "1 images", "--val-data")),
            (data, ["--val-data", str(stranger)], (stranger, "1 classes", "'class3'"))):
        assert search(folder, tmp_path / "w", *flags) == 2
        assert_error(capsys.readouterr().err, "search_imagenet.sh", *names)


def test_resume_into_another_search_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, "--epochs", "1") == 0
    for change in (["--seed", "5"], ["--epochs", "3"], ["--cfg-options", "operations=[Invert,Rotate,Cutout]"],
                   *(["--cfg-options", option] for option in ("padding=2", "clip_grad=1.0", "base_batch_size=8"))):
        assert search(data, tmp_path, "--epochs", "1", "--resume", *change) == 2
        error = capsys.readouterr().err
        assert "is of another run" in error and len(error) < 500
        if "padding=2" in change:
            assert_names(error, "padding 0 instead of 2", "--work-dir")


@pytest.mark.parametrize("flags", [["--epochs", "1"], ["--epochs", "2", "--batch-size", "12"]])
def test_a_search_of_few_steps_learns_too(flags: list[str], data: Path, tmp_path: Path) -> None:
    """Of the second search a single step learns, step 1, and it has a validation pass whatever its number."""
    assert search(data, tmp_path, *flags) == 0
    table = json.loads((tmp_path / "search.json").read_text())["sub_policies"]
    assert len({entry["preference"] for entry in table}) > 20


def test_cifar10_has_no_validation_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", "configs/search_cifar10.py", "--val-data", str(tmp_path), "--work-dir", str(tmp_path)]) == 2
    assert "split in halves" in capsys.readouterr().err
    assert main(["--config", "configs/search_cifar10.py", "--image-size", "36", "--work-dir", str(tmp_path)]) == 2
    assert_names(capsys.readouterr().err, "--image-size 36", "32 px")


@pytest.mark.parametrize("seed", ["-1", "99999999999", "x"])
def test_a_seed_out_of_range(seed: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--seed", seed])
    assert stopped.value.code == 2 and "--seed" in capsys.readouterr().err


@pytest.mark.slow  # four processes that import for ten seconds each; the steps are compared in test_search_ranks.py
def test_two_processes_search_through_the_command_and_resume(data: Path, tmp_path: Path) -> None:
    """With BatchNorm, whose running statistics the checkpoint of the first process has to hold for both."""
    flags = ("--gpus", "2", "--epochs", "3")
    assert search(data, tmp_path / "whole", *flags) == 0
    table = json.loads((tmp_path / "whole/search.json").read_text())["sub_policies"]
    assert len({entry["preference"] for entry in table}) > 20
    state = torch.load(tmp_path / "whole/epoch_2.pth", weights_only=False)["state_dict"]
    assert any("running_var" in name for name in state)
    (tmp_path / "interrupted").mkdir()
    shutil.copy(tmp_path / "whole/epoch_2.pth", tmp_path / "interrupted")
    assert search(data, tmp_path / "interrupted", "--resume", *flags) == 0
    for name in ("policy.json", "search.json"):
        assert (tmp_path / "interrupted" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_output_folder_that_cannot_be_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert search(data, tmp_path / "file/w") == 2
    assert "cannot write into" in capsys.readouterr().err


def test_a_loss_that_becomes_nan_names_the_step(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(data, tmp_path, "--cfg-options", "weights_optimizer.lr=1e38", "clip_grad=1e38") == 2
    assert "the loss became NaN or infinite at step" in capsys.readouterr().err
