"""tools/plan.py: measures a config of each stage, keeps figures by hardware, plans from them, says what is missing."""

import json
from pathlib import Path

import pytest

from dada_det.commands import plan
from dada_det.engine.compare.plan_steps import TRIAL_TRAININGS
from dada_det.engine.search.trainings import ImageTrainings
from dada_det.report.measurements import hardware
from dada_det.report.plan import TRIAL_OVER_STEPS
from dada_det.search.candidates import FAMILIES
from tests.conftest import write_noise
from tests.messages import assert_error, assert_names, refused

SMALL = ["classifier.name=convnet", "image_size=32"]  # at 16 px an image takes no memory that can be told


pytestmark = pytest.mark.usefixtures("without_gpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SECONDS", 0.1)


def figures(folder: Path, **changes: object) -> dict[str, object]:
    """A plan_*.json of a GPU, as --measure writes it."""
    row = {"config": "pretrain_r50", "stage": "pretraining", "model": "resnet50", "precision": "bfloat16", "batch": 256,
           "seconds_per_image": 1e-3, "low": 1e-3, "high": 1e-3, "n": 30, "fixed_bytes": 2**30, "bytes_per_image": 2**26,
           "sample_core_seconds": 4e-3, "samples": 100, "sample_source": "400 images of 110 kB", "device_bytes": 80 * 2**30,
           "cores": 16, "threads": 0, "image_size": 224, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "plan_some_gpu.json").write_text(json.dumps({"hardware": "Some GPU", "rows": [row], "versions": {}}))
    return row


def test_pretraining_and_search_are_measured_and_planned(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_noise(tmp_path / "data" / "train", classes=2, images=3, side=20, spread=60)
    arguments = ["configs/pretrain_r50.py", "configs/search_imagenet.py", "--measure", "--data", str(tmp_path / "data"),
                 "--threads", "1", "--results", str(tmp_path / "results"), "--json", str(tmp_path / "plan.json"),
                 "--cfg-options", *SMALL]
    assert plan.main(arguments) == 0
    output = capsys.readouterr()
    (path,) = (tmp_path / "results").glob("plan_*.json")
    kept = json.loads(path.read_text())
    assert kept["hardware"] == hardware() and "torch" in kept["versions"]
    pretrain, search = kept["rows"]
    assert (pretrain["stage"], search["stage"], pretrain["samples"]) == ("pretraining", "search", 6)
    assert (pretrain["image_size"], search["image_size"]) == (32, 32)
    for row in kept["rows"]:
        assert 0 < row["low"] <= row["seconds_per_image"] <= row["high"] and row["n"] >= 3
        assert row["fixed_bytes"] > 0 and row["bytes_per_image"] > 0 and row["threads"] == 1
    assert pretrain["sample_core_seconds"] > 0 and search["sample_core_seconds"] is None
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert [row["images"] for row in rows] == [1_281_167 // 256 * 256 * 100, 3000 // 128 * 128 * 20]
    assert rows[0]["hours"] == pytest.approx(rows[0]["images"] * pretrain["seconds_per_image"] / 3600)
    # The trial: nine trainings on all images of the search, of which half train in its steps.
    trial = 9 * 2 * pretrain["seconds_per_image"]
    assert rows[1]["hours"] == pytest.approx(rows[1]["images"] * (search["seconds_per_image"] + trial) / 3600)
    assert f"{1000 * search['seconds_per_image']:.4g} ms an image" in output.out  # as measured, without the trial
    assert_names(output.out, "the time holds the search's trial", "9 trainings", "pretrain_r50",
                 f"{trial / search['seconds_per_image']:.2f} times")
    assert f"{hardware()}, 1 of " in output.out and "no decode in the loop" in output.out
    assert_names(output.out, "No GPU", "--gpus 1", "--measure")
    assert_names(output.out.splitlines()[-1], "2 rows", tmp_path / "plan.json", "linear", "communication, validation")
    # Measured again, a row takes the place of the old one; another config's stays.
    assert plan.main([arguments[1], "--measure", "--results", str(tmp_path / "results"), "--cfg-options", *SMALL]) == 0
    assert [row["stage"] for row in json.loads(path.read_text())["rows"]] == ["pretraining", "search"]


def test_a_trial_that_no_training_tells_the_cost_of_is_left_out_and_said(tmp_path: Path,
                                                                         capsys: pytest.CaptureFixture) -> None:
    row = figures(tmp_path)
    search = {**row, "config": "search_imagenet", "stage": "search", "sample_core_seconds": None}
    others = [{**row, name: value} for name, value in (("model", "resnet18"), ("precision", "float32"), ("image_size", 64))]
    paper = {**search, "config": "search_imagenet_paper"}
    (tmp_path / "plan_some_gpu.json").write_text(json.dumps({"hardware": "Some GPU", "rows": [*others, search, paper]}))
    arguments = ["--results", str(tmp_path), "--json", str(tmp_path / "plan.json")]
    assert plan.main(["configs/search_imagenet.py", *arguments]) == 0
    (planned,) = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert planned["hours"] == pytest.approx(planned["images"] * 1e-3 / 3600)
    assert_names(capsys.readouterr().out, "search_imagenet: the time leaves out the search's trial", "9 trainings",
                 "18 times the images", "--measure a pretraining of resnet50", "bfloat16")
    assert plan.main(["configs/search_imagenet_paper.py", *arguments]) == 0  # the paper's mode has none
    assert "the search's trial" not in capsys.readouterr().out


def test_the_trials_trainings_are_those_of_a_search() -> None:
    from dada_det.augment.operations import OPERATION_NAMES
    from dada_det.engine.compare.plan_steps import TRIAL_TRAININGS
    from dada_det.engine.search.trainings import ImageTrainings
    from dada_det.search.candidates import families

    assert len(ImageTrainings.fixed) + len(families(OPERATION_NAMES)) + 1 == TRIAL_TRAININGS  # and what alignment proposes


@pytest.mark.parametrize("settings", [[], ["search.val_every=3"]])
def test_a_search_is_measured_with_its_validation_passes(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from dada_det.commands.common import load_config
    from dada_det.engine.compare import plan_steps
    from dada_det.search import dada

    stage = plan_steps.build_stage(load_config("configs/search_imagenet.py", [*SMALL, *settings]), None)
    step, seen = stage.step(4), []
    original = dada.validation_gradient
    monkeypatch.setattr(dada, "validation_gradient",
                        lambda parts, weights, batch: (seen.append(batch.validates), original(parts, weights, batch))[1])
    for runs in (1, 2, 3):
        step.run()
        assert sum(seen) == runs and len(seen) == runs * step.steps and step.steps == (3 if settings else 2)


def test_a_plan_for_a_gpu_comes_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures(tmp_path / "results")
    assert plan.main(["configs/pretrain_r50.py", "--gpus", "8", "--nodes", "2", "--results", str(tmp_path / "results"),
                      "--json", str(tmp_path / "plan.json")]) == 0
    (row,) = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert (row["hardware"], row["devices"], row["per_device"], row["limit"]) == ("Some GPU", 16, 16, "decode")
    assert row["hours"] == pytest.approx(1_281_024 * 100 * 4e-3 / 16 / 2 / 3600)
    output = capsys.readouterr().out
    assert "No GPU" not in output
    assert_names(output, "measured on Some GPU", "resnet50 in bfloat16", "batch 256 of 224 px", "1 ms")


def test_figures_of_images_of_another_size_stand_in_for_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    figures(tmp_path)
    arguments = ["configs/pretrain_r50_paper.py", "--results", str(tmp_path)]
    assert plan.main(arguments) == 0
    assert_names(capsys.readouterr().out, "pretrain_r50_paper: measured on Some GPU", "of 224 px")
    assert plan.main([*arguments, "--cfg-options", "image_size=64"]) == 2
    told = "python tools/plan.py configs/pretrain_r50_paper.py --measure --cfg-options image_size=64"
    assert_error(capsys.readouterr().err, "plan.py", "of pretrain_r50_paper image_size=64", told)
    figures(tmp_path, image_size=None)  # a file from before it was noted
    assert plan.main(arguments) == 2
    assert_error(capsys.readouterr().err, "plan.py", "no figures of pretrain_r50_paper")


def test_a_study_is_planned_from_what_gpu_sh_has_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """For 1, 8 and 64 GPUs; a recipe that was not measured takes the figures of its network, a search those of its trial."""
    row = figures(tmp_path)
    others = [{**row, "config": f"{name}_r50_baseline", "stage": "detection", "model": name} for name in (
        "retinanet", "faster_rcnn", "mask_rcnn")]
    search = {**row, "config": "search_imagenet", "stage": "search", "sample_core_seconds": None, "host_seconds": 0.02}
    (tmp_path / "plan_some_gpu.json").write_text(json.dumps({"hardware": "Some GPU", "rows": [row, search, *others]}))
    line = "check,result,seconds,figure,value,aim\nsearch_imagenet,pass,90,{},3.0,\n"
    (tmp_path / "gpu.csv").write_text(line.format("its trial; seconds") + line.format(
        f'"{TRIAL_OVER_STEPS}"').splitlines()[1])
    assert plan.main(["--measured", str(tmp_path), "--json", str(tmp_path / "plan.json")]) == 0
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert len(rows) == 10 * 3 and [row["devices"] for row in rows[:3]] == [1, 8, 64]
    of = {(row["config"], row["devices"]): row for row in rows}
    assert {name for name, _ in of} == {Path(path).stem for path in plan.STUDY}
    assert of["pretrain_r50_rsb_a3", 1]["images"] == pytest.approx(1_281_167 // 2048 * 2048 * 100 * (160 / 224) ** 2)
    one, eight = of["search_imagenet", 1], of["search_imagenet", 8]
    assert one["hours"] == pytest.approx(one["images"] * 1e-3 * (1 + 3) / 3600) and one["limit"] == "model"
    assert (eight["limit"], eight["hours"]) == ("host", pytest.approx(one["hours"] / 8 * 20 / 16))
    output = capsys.readouterr().out
    assert_names(output, "trial", "3.00 times")
    assert plan.main(["configs/pretrain_r50.py", "--gpus", "4", "--measured", str(tmp_path)]) == 0
    assert "plan  done: 1 rows" in capsys.readouterr().out
    for arguments, names in ((["--measured", str(tmp_path / "x")], (tmp_path / "x/gpu.csv", "bash tools/bench/gpu.sh")),
                             ([], ("configs/pretrain_r50.py", "--measured OUT")),
                             (["--measured", str(tmp_path), "--measure"], ("--measured", "--measure", "leave one out")),
                             (["--measured", str(tmp_path), "configs/search_cifar10.py"], ("--only images plan_images",))):
        assert plan.main(arguments) == 2
        assert_names(capsys.readouterr().err, *names)


@pytest.mark.parametrize("config, images, per_device", [
    ("configs/pretrain_r50_paper.py", 1_281_167 // 1024 * 1024 * 270, 128),
    ("configs/pretrain_r50_modern.py", 1_281_167 // 1024 * 1024 * (38 * 160**2 + 37 * 192**2 + 25 * 224**2) / 224**2, 128),
    ("configs/search_imagenet.py", 3000 // 128 * 128 * 20, 16), ("configs/search_cifar10.py", 2000 // 128 * 128 * 20, 16),
    ("configs/search_cifar100.py", 2000 // 128 * 128 * 20, 16), ("configs/search_svhn.py", 500 // 32 * 32 * 20, 4),
    ("configs/retinanet_r50_dada.py", 117_266 * 12, 2), ("configs/mask_rcnn_r50_dada_ms3x.py", 117_266 * 36, 2),
    ("configs/debug/faster_rcnn.py", 50 * 4 * 8, 4)])
def test_what_each_config_goes_through(config: str, images: float, per_device: int) -> None:
    from dada_det.commands.common import load_config
    from dada_det.engine.compare.plan_steps import demand_of

    demand = demand_of(load_config(config), 8, None)
    assert demand.images == pytest.approx(images) and demand.per_device == per_device


def test_a_search_against_a_target_trains_on_all_of_its_images() -> None:
    from dada_det.commands.common import load_config
    from dada_det.engine.compare.plan_steps import demand_of, trial_passes

    halves, target = (load_config("configs/search_imagenet.py", options) for options in ([], ["data.val_root=x"]))
    assert demand_of(target, 1, None).images == 6000 // 128 * 128 * 20
    assert (trial_passes(halves), trial_passes(target)) == (18, 9)


def test_a_config_of_the_needed_entries_alone_is_planned_where_the_images_are_said(tmp_path: Path) -> None:
    from dada_det.commands.common import load_config
    from dada_det.engine.compare.plan_steps import demand_of

    config = load_config("configs/search_imagenet.py")
    for name in ("mirror", "clip_grad"):
        config.pop(name)
    config.data = {"root": "data"}
    assert demand_of(config, 1, 1280).images == 1280 * 20
    with refused("data.subset=None", "--images"):
        demand_of(config, 1, None)


def test_figures_under_a_name_are_of_its_network_and_its_name_is_of_one_config(tmp_path: Path,
                                                                             capsys: pytest.CaptureFixture) -> None:
    figures(tmp_path / "results")
    own = tmp_path / "my/pretrain_r50.py"
    own.parent.mkdir()
    own.write_text(f"_base_ = {str(Path('configs/pretrain_r50.py').resolve())!r}\nclassifier = dict(name='resnet18')\n")
    arguments = ["--results", str(tmp_path / "results")]
    assert plan.main(["configs/pretrain_r50.py", *arguments]) == 0
    assert plan.main([str(own), *arguments]) == 2
    assert_names(capsys.readouterr().err, "no figures of pretrain_r50", "--measure")
    assert plan.main([str(own), "configs/pretrain_r50.py", *arguments]) == 2
    assert_names(capsys.readouterr().err, "one name", "rename")


@pytest.mark.slow
def test_a_detector_is_measured_on_real_images(shared: Path, tmp_path: Path) -> None:
    assert plan.main(["configs/debug/retinanet.py", "--measure", "--threads", "1", "--data", str(shared / "data/coco-tiny"),
                      "--results", str(tmp_path), "--cfg-options", "train_dataloader.dataset.pipeline.2.scale=(64,64)"]) == 0
    (path,) = tmp_path.glob("plan_*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert (row["stage"], row["model"], row["batch"]) == ("detection", "RetinaNet", 2)
    assert row["sample_core_seconds"] > 0 and row["sample_source"] == "80 images of coco-tiny"


def test_mistakes_are_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def told(*arguments: str, names: tuple[object, ...]) -> None:
        assert plan.main([*arguments, "--results", str(tmp_path / "results")]) == 2
        assert_error(capsys.readouterr().err, "plan.py", *names)

    told("configs/pretrain_r50.py", names=("of pretrain_r50", "python tools/plan.py configs/pretrain_r50.py --measure"))
    told("nowhere.py", names=("nowhere.py",))
    told("configs/pretrain_r50.py", "--data", "x", names=("--data", "add --measure"))
    told("configs/pretrain_r50.py", "--measure", "--data", "x", names=("x", "train/"))
    told("configs/debug/retinanet.py", "--measure", "--data", "x", names=("x", "folder"))
    (tmp_path / "other.py").write_text("epochs = 3\n")
    told(str(tmp_path / "other.py"), names=(tmp_path / "other.py", "search over images"))
    figures(tmp_path / "results", colour="red")
    told("configs/pretrain_r50.py", names=("plan_some_gpu.json", "--measure", "config, stage"))
    (tmp_path / "results" / "plan_some_gpu.json").write_text("{")
    told("configs/pretrain_r50.py", names=("plan_some_gpu.json", "JSON"))


def test_help_shows_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        plan.main(["--help"])
    assert_names(capsys.readouterr().out, "python tools/plan.py", "--gpus 8")


def test_a_plan_counts_the_trainings_that_a_trial_makes():
    assert len({*ImageTrainings.fixed, "aligned", *FAMILIES}) == TRIAL_TRAININGS
