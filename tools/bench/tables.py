"""Writes every table of results in README.md and docs/*.md from the files in results/ (`make tables`).

A page holds a table between two lines, which stay:

    <!-- table: planted -->
    <!-- end -->

--check writes nothing and exits with 2 where a page and its files differ.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import planted
import planted_alone
import planted_daas
import planted_detection
import verdicts

import natural_table  # these stand beside this file
from dada_det.augment.operations import OPERATION_NAMES
from dada_det.commands import common
from dada_det.errors import UserError
from dada_det.files import write_text
from dada_det.report import comparison
from dada_det.report.statistics import paired_difference
from dada_det.search.settings import ESTIMATORS
from natural_table import FIXED
from paper_ablation import CONTROLS, SETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/*.md")
REGION = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]


def results(name: str) -> dict[str, Any]:
    """The content of results/<name>.json."""
    return json.loads((ROOT / f"results/{name}.json").read_text(encoding="utf-8"))


def rows_of(name: str) -> list[Row]:
    """The rows of results/<name>.json."""
    return results(name)["rows"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    top, *lines = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    return [top, "|" + "---|" * len(head), *lines]


def indented(lines: Sequence[str]) -> list[str]:
    """Lines as a block of code; the empty lines keep the block apart from the markers."""
    return ["", *(f"    {line}".rstrip() for line in lines), ""]


def with_ends(values: Sequence[float], form: str) -> str:
    """A figure and its interval, as in 2.61 (2.58 to 2.68)."""
    middle, low, high = (format(value, form) for value in values)
    return f"{middle} ({low} to {high})"


PROBLEMS = {  # of natural.py: what a reader has to know of each
    "gtsrb12": "twelve traffic signs, 336 pictures, EfficientNet-Lite0 from ImageNet weights",
    "imagenette-few": "500 photographs of ten classes, a small network from scratch",
    "digits-few": "200 digits, a small network from scratch",
    "sketch-few": "140 sketches of seven classes (PACS), EfficientNet-Lite0 from ImageNet weights",
    "pacs-sketch": "photographs to train, sketches to test (PACS), EfficientNet-Lite0",
    "pacs-art": "photographs to train, paintings to test (PACS), EfficientNet-Lite0",
    "nuclei-stain": "fluorescent nuclei to train, stained tissue to test, RetinaNet around EfficientNet-Lite0, **box AP**",
}


def natural() -> list[str]:
    """A line for each problem and way of training that has a search: the mean of each arm over the seeds of searches."""
    found, lines = rows_of("natural"), []
    for problem in dict.fromkeys(row["problem"] for row in found):
        arms = natural_table.by_arm(found, problem)
        for ending, said in (("", ""), (natural_table.WITH_TARGET, "; labelled target images train too")):
            searched = arms.get(f"{natural_table.LEARNED}{ending}", {})
            scores = [[score for seed, score in arms.get(f"{name}{ending}", {}).items() if seed in searched]
                      for name in (*FIXED, natural_table.LEARNED)]
            counts = [len(values) for values in scores if values]
            if scores[-1]:
                n = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
                means = [f"{statistics.fmean(values):.1f}" if values else "not run" for values in scores]
                lines.append([f"{PROBLEMS.get(problem, problem)}{said} (n = {n})", *means[:-1], f"**{means[-1]}**"])
    return markdown(("problem", *FIXED, "**handed over**"), lines)


def natural_lines() -> list[str]:
    """What natural.py prints of its rows; the verdict of a row that an earlier form of the trial gave is left out."""
    truth = rows_of("natural_truth") if (ROOT / "results/natural_truth.json").exists() else []
    return indented(natural_table.table([without_old_verdict(row) for row in rows_of("natural")], truth))


def without_old_verdict(row: Row) -> Row:
    verdict = row.get("verdict", {"candidates": []})
    known = all("expected" in candidate for candidate in verdict["candidates"])
    return row if known else {name: value for name, value in row.items() if name != "verdict"}


def planted_rows(name: str, modes: Sequence[str], shown: Sequence[str]) -> list[str]:
    """A line for each operation: gap, AUC and rank of each search in the modes `shown`, mean accuracies of `modes`."""
    found, lines = rows_of(name), []
    for operation in (each for each in OPERATION_NAMES if any(row["operation"] == each for row in found)):
        own = {mode: [row for row in found if (row["operation"], row["mode"]) == (operation, mode)] for mode in modes}
        last = own[modes[-1]]
        lines.append([operation, mean_of(last, "gap"),
                      *(", ".join(f"{row['auc']:.2f} ({row['rank']})" for row in own[mode]) for mode in shown),
                      *(mean_of(last, f"accuracy_{control}") for control in ("none", "random", "one_op")),
                      *(mean_of(own[mode], "accuracy") for mode in modes[:-1]),
                      f"**{mean_of(last, 'accuracy')}**", mean_of(last, "accuracy_oracle")])
    head = ["planted", "gap", *(f"AUC (rank), {mode}" for mode in shown), "none", "random", "one-op", *modes[:-1],
            f"**{modes[-1]}**", "oracle"]
    return [*markdown(head, lines), *indented(planted.summary(found))]


def mean_of(rows: Sequence[Row], column: str) -> str:
    return f"{statistics.fmean(row[column] for row in rows):.0f}"


def planted_alone_lines(name: str) -> list[str]:
    return indented(planted_alone.summary(rows_of(name)))


def policies_side_by_side(name: str, label: Callable[[Row], str],
                          order: Callable[[str], Any] = lambda policy: 0) -> list[str]:
    """The table of compare_policies.py over the rows' top-1; label: a row's policy; order: sorts the policies."""
    accuracies: dict[str, list[float]] = {}
    for row in sorted(rows_of(name), key=lambda row: row["seed"]):
        accuracies.setdefault(label(row), []).append(row["top1"])
    chosen = {policy: accuracies[policy] for policy in sorted(accuracies, key=order)}
    return indented(comparison.table(comparison.summarise(chosen)).splitlines())


def paper_ablation() -> list[str]:
    estimators = [*CONTROLS, *ESTIMATORS, "default"]
    return policies_side_by_side(
        "paper_ablation", lambda row: row["estimator"] if row["set"] == "-" else f"{row['set']:7} {row['estimator']}",
        lambda policy: (policy.startswith(SETS), policy.startswith("full"), estimators.index(policy.split()[-1])))


DETECTORS = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}
KINDS = {"bbox": "boxes", "segm": "masks"}


def compare_nuclei() -> list[str]:
    """Means over seeds, and differences with an interval over images and one over seeds."""
    found = {(row["detector"], row["kind"], row["backbone"]): row for row in results("compare_nuclei")["summary"]
             if row["figure"] == "AP"}
    lines = []
    for detector, kind in dict.fromkeys(key[:2] for key in found):
        ours, none = found[detector, kind, "policy"], found[detector, kind, "none"]
        lines.append([f"{DETECTORS[detector]}, {KINDS[kind]}", f"{ours['mean']:.2f}", f"{none['mean']:.2f}",
                      f"{ours['difference']:+.2f}", f"{ours['difference_low']:+.2f} to {ours['difference_high']:+.2f}",
                      f"± {ours['difference_seeds']:.2f}"])
    return markdown(("detector", "policy", "none", "policy minus none", "over images", "over seeds"), lines)


MODELS = {"wide_resnet40_2": "Wide-ResNet-40-2, 32 px, batch 32", "resnet50": "ResNet-50, 128 px, batch 8"}


def search_step() -> list[str]:
    lines = [[MODELS[row["model"]], row["mode"].replace("draws=1", ", one draw").replace(" ,", ","),
              with_ends((row["ratio"], row["low"], row["high"]), ".2f"), f"{row['memory_ratio']:.2f}",
              str(row["rewards_per_step"]), f"{row['weights_update']:.2f}"]
             for name in ("search_step", "search_step_one_draw") for row in rows_of(name)]
    return markdown(("model", "search", "ratio (median, 95 % interval)", "memory over plain training", "rewards a step",
                     "weights' own update"), lines)


PRETRAIN = {"pipeline": "pipeline", "memory": "the same from memory", "bare": "bare forward, backward, SGD",
            "samples": "decode, crop and policy, one core"}


def pretrain() -> list[str]:
    lines = [[PRETRAIN[row["what"]], f"{row['images_per_second']:.1f}",
              "1" if row["what"] == "bare" else with_ends((row["ratio"], row["ratio_low"], row["ratio_high"]), ".2f")]
             for row in rows_of("pretrain")]
    return markdown(("ResNet-50, 128 px, float32", "images/s", "to the bare model (95 % interval)"), lines)


def pretrain_decode() -> list[str]:
    lines = [[row["what"].replace("_", ", "), f"{row['images_per_second']:.0f}",
              "1" if row["what"] == "pillow" else with_ends((row["ratio"], row["ratio_low"], row["ratio_high"]), ".2f")]
             for row in rows_of("pretrain_decode")]
    return markdown(("JPEG decoder", "images/s", "to Pillow (95 % interval)"), lines)


def plan() -> list[str]:
    lines = [[f"{row['config']}, batch {row['per_device']}", f"{row['images_per_second']:.2g}",
              with_ends((row["hours"], row["hours_low"], row["hours_high"]), ",.0f"),
              "-" if row["decode_cores"] is None else f"{row['decode_cores']:.2f}", f"{row['memory_gib']:.1f}", row["limit"]]
             for row in rows_of("plan")]
    return markdown(("config", "images/s", "hours", "decode cores", "memory, GiB", "limit"), lines)


def train_det() -> list[str]:
    lines = [[f"{row['config']}, {row['image_size']} px, n = {row['rounds']}", f"{row['differing']} of {row['scalars']}",
              *(with_ends(row[clock], ".3f") for clock in ("step", "process", "cpu"))] for row in rows_of("train_det")]
    return markdown(("config", "scalars that differ", "training steps", "whole process", "processor time"), lines)


def evaluation() -> list[str]:
    lines = [[f"{'COCO fixture' if row['what'] == 'fixture' else row['what']}, {KINDS[row['kind']]}", f"{row['images']:,}",
              f"{row['objects']:,}", f"{row['detections']:,}", f"{row['reference']:.1f} s", f"{row['default']:.1f} s",
              f"{row['ratio']:.2f}"] for row in rows_of("evaluation")]
    return markdown(("results", "images", "objects", "detections", "pycocotools", "faster-coco-eval", "ratio"), lines)


AUGMENT = {("image", "dada"): "dada_det, policy dada-imagenet", ("image", "pil"): "plain Pillow, the same draws",
           ("image", "dada_autoaugment"): "dada_det, AutoAugment's policy", ("image", "timm"): "timm, AutoAugment",
           ("image", "trivial"): "torchvision, TrivialAugmentWide",
           ("image", "torchvision_v2"): "torchvision v2, AutoAugment",
           ("batch", "dada"): "a batch of 32, dada_det", ("batch", "torchvision_by_group"):
           "a batch of 32, torchvision's functions group by group"}


def augment() -> list[str]:
    found = {(row["path"], row["what"]): row for row in rows_of("augment")}
    lines = [[label, f"{found[key]['images_per_second']:,.0f}", "1" if found[key]["ratio"] == 1 else
              with_ends([found[key][name] for name in ("ratio", "ratio_low", "ratio_high")], ".2f")]
             for key, label in AUGMENT.items()]
    return markdown(("what", "images a second", "to the reference (80 % of the rounds)"), lines)


def detectors() -> list[str]:
    return markdown(("detector", "config (`mmdet::`)", "here"),
                    [[row["detector"], f"`{row['config'].removeprefix('mmdet::')}`", outcome_of(row["outcome"])]
                     for row in rows_of("detectors")])


def outcome_of(outcome: str) -> str:
    missing = re.search(r"mmcv's compiled (\w+)|(\w+_forward)", outcome)
    if outcome == "runs":
        return outcome
    return f"needs mmcv's compiled `{missing[1] or missing[2]}`" if missing else f"does not run here: {outcome}"


WAYS = {"central": "difference of two passes", "forward": "one pass in forward mode"}


def reward_error() -> list[str]:
    """A line for each way and precision: how far the rewards are from float64's."""
    return markdown(("how a reward is computed", "precision", "error", "cosine"), [
        [WAYS[row["way"]], row["precision"], f"{100 * row['error']:.2g} %", f"{row['cosine']:.5f}"]
        for row in rows_of("reward_error")])


def verdict_rules() -> list[str]:
    """A line for each rule of the verdict: the mean score of what it hands over, by problem, and the difference to ours."""
    found = rows_of("verdicts")
    problems = {name: verdicts.by_rule(found, name) for name in dict.fromkeys(row["problem"] for row in found)}

    def figure(scores: dict[str, list[float]], rule: str) -> str:
        difference = natural_table.interval(*paired_difference(scores[rule], scores[verdicts.SHIPPED]), "+")
        return f"{statistics.fmean(scores[rule]):.1f}" + (f", {difference}" if rule != verdicts.SHIPPED else "")

    heads = [f"{name} (n = {len(scores[verdicts.SHIPPED])})" for name, scores in problems.items()]
    return markdown(("rule", *heads), [[rule, *(figure(scores, rule) for scores in problems.values())]
                                       for rule in dict.fromkeys(row["rule"] for row in found)])


TABLES: dict[str, Callable[[], list[str]]] = {
    "natural": natural, "natural_lines": natural_lines,
    "planted": lambda: planted_rows("planted", ("paper", "default"), ("default",)),
    "planted_whole": lambda: indented(planted.summary(rows_of("planted_whole"))),
    "planted_alone": lambda: planted_alone_lines("planted_alone"),
    "planted_imagenette": lambda: planted_rows("planted_imagenette", ("default",), ("default",)),
    "planted_alone_imagenette": lambda: planted_alone_lines("planted_alone_imagenette"),
    "planted_ddas": lambda: planted_rows("planted_ddas", ("default", "ddas"), ("default", "ddas")),
    "planted_daas": lambda: indented(planted_daas.report(rows_of("planted_daas"))[-10:]),
    "planted_detection": lambda: indented(planted_detection.summary(rows_of("planted_detection"))),
    "paper_ablation": paper_ablation, "search_step": search_step, "pretrain": pretrain, "pretrain_decode": pretrain_decode,
    "plan": plan, "train_det": train_det, "evaluation": evaluation,
    "compare_imagenette": lambda: policies_side_by_side("compare_imagenette", lambda row: row["policy"]),
    "reward_error": reward_error, "verdicts": verdict_rules,
    "compare_nuclei": compare_nuclei, "augment": augment, "detectors": detectors,
}


def rewritten(text: str, page: str) -> str:
    """The page with every table written anew.

    Raises:
        UserError: a marker names no table.
    """
    def table(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise UserError(f"{page} asks for the table {found[2]!r}, which there is not; tables: {', '.join(TABLES)}")
        return found[1] + "\n".join([*TABLES[found[2]](), found[3]])

    return REGION.sub(table, text)


def body(args: argparse.Namespace) -> None:
    changed = []
    for path in (path for pattern in PAGES for path in sorted(ROOT.glob(pattern))):
        page, old = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        new = rewritten(old, page)
        if new != old:
            changed.append(page)
            if not args.check:
                write_text(path, new)
    if changed and args.check:
        raise UserError(f"{', '.join(changed)} and results/ differ; `make tables` writes the pages anew")
    print(f"tables  done: {', '.join(changed)} written" if changed else "tables  done: no page differs from results/")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the pages; returns the exit code (0, 2 for a user's mistake or a page that differs)."""
    parser = common.parser_for("tables.py", __doc__ or "", "python tools/bench/tables.py --check")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
