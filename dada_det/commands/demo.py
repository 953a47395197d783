"""make demo: all stages on data that it makes, small enough for two CPU cores."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dada_det.commands import common, pretrain, search, test_det, train_det
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json, write_text

DETECTORS = {"retinanet": "RetinaNet", "faster_rcnn": "Faster R-CNN", "mask_rcnn": "Mask R-CNN"}
PICTURE_IMAGES = 6
IMAGES_PER_CLASS = 10  # of 12, for the search, whose trial would make the demo a tenth longer with all


@dataclass(frozen=True)
class Row:
    """One line of the closing table; seconds of wall time."""

    stage: str
    result: str
    seconds: float
    artefact: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code of the stage that failed, else 0."""
    parser = common.parser_for(
        "demo", "Search -> pretrain -> RetinaNet, Faster R-CNN, Mask R-CNN -> COCO evaluation -> test-dev zip, on synthetic "
        "images; closes with a table of results, times and artefacts.", "python -m dada_det.commands.demo")
    parser.add_argument("--work-dir", default="work_dirs/demo", metavar="W", help="(default: %(default)s)")
    return common.run(body, parser, argv)


def body(args: Namespace) -> None:
    started, work_dir = time.monotonic(), make_folder(args.work_dir)
    rows = [timed("data", work_dir, make_data), timed("search", work_dir, run_search),
            timed("pretrain", work_dir, run_pretraining)]
    rows += [timed(name, work_dir, run_detector) for name in DETECTORS]
    rows.append(timed("test-dev", work_dir, write_test_dev))
    table = closing_table(rows, time.monotonic() - started)
    write_text(work_dir / "table.txt", table)
    print(f"\n{table}\ndemo  done: this table is {work_dir / 'table.txt'}; the found policy, 25 sub-policies applied to "
          f"a few images, is the picture {work_dir / 'policy.png'}")


def timed(stage: str, work_dir: Path, run: Callable[[str, Path], tuple[str, str, Path]]) -> Row:
    print(f"\n--- {stage}", flush=True)
    start = time.monotonic()
    title, result, artefact = run(stage, work_dir)
    return Row(title, result, time.monotonic() - start, artefact)


def command(main: Callable[[Sequence[str]], int], *argv: object) -> None:
    """Runs one command of the project in this process, which saves each the seconds of its imports."""
    words = [str(word) for word in argv]
    if main(words) != 0:
        raise UserError(f"the demo stops because its stage `{main.__module__} {' '.join(words)}` failed, see above")


def make_data(stage: str, work_dir: Path) -> tuple[str, str, Path]:
    from dada_det.data.synthetic import ensure_demo_data

    root = ensure_demo_data()
    coco = read_json(root / "coco/annotations/instances_train2017.json", "annotation file")
    used = len({annotation["category_id"] for annotation in coco["annotations"]})
    return "data", f"120 classes; {len(coco['images'])} training scenes with {used} categories", root


def run_search(stage: str, work_dir: Path) -> tuple[str, str, Path]:
    out = work_dir / "search"
    command(search.main, "--config", "configs/debug/search.py", "--work-dir", out, "--cfg-options",
            f"data.images_per_class={IMAGES_PER_CLASS}")
    from PIL import Image

    from dada_det.augment import Policy
    from dada_det.report.policy_picture import policy_picture

    files = sorted(Path("data/demo/imagenet/train").glob("*/*.JPEG"))
    images = [Image.open(path).convert("RGB") for path in files[::max(1, len(files) // PICTURE_IMAGES)][:PICTURE_IMAGES]]
    policy_picture(Policy.load(out / "proposal.json"), images, work_dir / "policy.png")  # what was found, whatever won
    verdict = read_json(out / "verdict.json", "verdict")
    return "search", f"`{verdict['winner']}` won the trial of {len(verdict['candidates'])} policies", out / "policy.json"


def run_pretraining(stage: str, work_dir: Path) -> tuple[str, str, Path]:
    out = work_dir / "pretrain"
    command(pretrain.main, "--config", "configs/debug/pretrain.py", "--policy", work_dir / "search/policy.json",
            "--work-dir", out)
    metrics = read_json(out / "metrics.json", "metrics")
    return "pretrain", f"top-1 {metrics['top1']:.1f} %, top-5 {metrics['top5']:.1f} % of 120 classes", out / "r50.pth"


def run_detector(stage: str, work_dir: Path) -> tuple[str, str, Path]:
    """The untrained detector, training, and COCO's figures of the trained one."""
    config, out = f"configs/debug/{stage}.py", work_dir / stage
    backbone = ("--backbone", work_dir / "pretrain/r50.pth")
    command(test_det.main, config, "none", *backbone, "--work-dir", out / "untrained")
    command(train_det.main, config, *backbone, "--work-dir", out)
    command(test_det.main, config, last_checkpoint(out), "--work-dir", out)
    before, after = (read_json(folder / "metrics.json", "metrics") for folder in (out / "untrained", out))
    name = {"bbox": "box", "segm": "mask"}
    result = "; ".join(f"{name[kind]} AP50 {before[kind]['AP50']:.1f} -> {after[kind]['AP50']:.1f}, "
                       f"AP {after[kind]['AP']:.1f}" for kind in after)
    return DETECTORS[stage], result, out / "metrics.json"


def write_test_dev(stage: str, work_dir: Path) -> tuple[str, str, Path]:
    out = work_dir / "mask_rcnn"
    command(test_det.main, "configs/debug/mask_rcnn.py", last_checkpoint(out), "--work-dir", out, "--test-dev")
    zips = sorted((out / "test-dev").glob("*/*.zip"))
    return "test-dev file", f"{len(zips)} checked zips: boxes and masks", out / "test-dev"


def last_checkpoint(folder: Path) -> Path:
    return folder / Path((folder / "last_checkpoint").read_text(encoding="utf-8").strip()).name


def closing_table(rows: Sequence[Row], seconds: float) -> str:
    """The rows as text in columns; AP is of held-out synthetic scenes, untrained -> trained."""
    cells = [("stage", "result (detectors: untrained -> trained)", "time", "artefact")]
    cells += [(row.stage, row.result, f"{row.seconds:.0f} s", str(row.artefact)) for row in rows]
    cells.append(("all", "", f"{seconds:.0f} s", ""))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in cells) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
