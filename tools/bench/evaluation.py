"""How long COCO's figures take: the default evaluator over pycocotools, which is the reference, and how far they differ.

    python tools/bench/evaluation.py --json evaluation.json
    python tools/bench/evaluation.py --fixture cocoapi/results/ --kinds bbox

Rows: COCO's own fake results, where --fixture is a folder with instances_val2014_100.json and the two
instances_val2014_fake{bbox,segm}100_results.json beside it; and a synthetic result of val2017's size (ellipses of COCO's
range of sizes in 640 x 480 px, 1 % crowds; detections near the objects and elsewhere). Reading the files is part of it.

reference, default  processor seconds, of all threads together
ratio               default over reference
difference          the largest of the twelve figures, in percentage points
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as masks

from dada_det.commands import common
from dada_det.data.checks import coco_categories
from dada_det.engine.evaluate.figures import evaluate_results, has_faster_evaluator
from dada_det.engine.evaluate.results_stream import write_array
from dada_det.engine.evaluate.submission import KINDS
from dada_det.errors import UserError
from dada_det.files import write_json

WIDTH, HEIGHT = 640, 480
CORNERS = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24)), np.sin(np.linspace(0, 2 * np.pi, 24))], axis=1)
COLUMNS = {"what": "<10", "kind": "<5", "images": ">7", "objects": ">8", "detections": ">11", "reference": ">10.2f",
           "default": ">8.2f", "ratio": ">6.2f", "difference": ">11.1e"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("evaluation.py", "Times COCO's evaluation.",
                               "python tools/bench/evaluation.py --json evaluation.json")
    parser.add_argument("--fixture", metavar="DIR", help="COCO's fake results (default: without them)")
    parser.add_argument("--images", type=common.positive, default=5000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--objects", type=common.positive, default=36_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--detections", type=common.positive, default=36, metavar="N",
                        help="an image, on average (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="(default: both)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    return common.run(body, parser, argv)


def body(args: argparse.Namespace) -> None:
    if not has_faster_evaluator():
        raise UserError("faster-coco-eval is not installed, so there is nothing to compare; `pip install faster-coco-eval`")
    print("".join(f"{name:{form.split('.')[0]}}" for name, form in COLUMNS.items()))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, kind, truth, found in cases(args, Path(folder)):
            rows.append(measure(what, kind, truth, found))
            print("".join(f"{rows[-1][name]:{form}}" for name, form in COLUMNS.items()), flush=True)
    if args.json:
        from dada_det.report.measurements import write_rows

        write_rows(args.json, rows)


def cases(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """(what, kind, annotation file, results file) of each row."""
    for kind in args.kinds:
        if args.fixture:
            fixture = Path(args.fixture)
            yield ("fixture", kind, fixture / "instances_val2014_100.json",
                   fixture / f"instances_val2014_fake{kind}100_results.json")
    synthesise(folder, args.images, args.objects, args.detections)
    for kind in args.kinds:
        yield "synthetic", kind, folder / "truth.json", folder / f"{kind}.json"


def measure(what: str, kind: str, truth: Path, found: Path) -> dict[str, Any]:
    seconds, figures = [], []
    for reference in (True, False):
        began = time.process_time()
        figures.append(evaluate_results(truth, found, kind, reference))
        seconds.append(time.process_time() - began)
    content = json.loads(truth.read_text(encoding="utf-8"))
    return {"what": what, "kind": kind, "images": len(content["images"]), "objects": len(content["annotations"]),
            "detections": len(json.loads(found.read_text(encoding="utf-8"))),
            "reference": seconds[0], "default": seconds[1], "ratio": seconds[1] / seconds[0],
            "difference": max(abs(value - figures[1][name]) for name, value in figures[0].items())}


def synthesise(folder: Path, images: int, objects: int, detections: int) -> None:
    """Writes folder/{truth,bbox,segm}.json."""
    random = np.random.default_rng(0)
    categories = coco_categories()
    ids = np.array([category["id"] for category in categories])
    shares = np.arange(1, 81) ** -0.8
    owners = np.sort(random.integers(1, images + 1, objects))
    kinds = random.choice(ids, objects, p=shares / shares.sum())
    boxes_N4 = random_boxes(random, objects)
    truth = [{**thing(owner, kind, box), "id": number, "iscrowd": int(random.random() < 0.01)}
             for number, (owner, kind, box) in enumerate(zip(owners, kinds, boxes_N4, strict=True), 1)]
    for entry in truth:
        entry["area"] = float(masks.area(entry["segmentation"]))
    near = random.integers(0, objects, images * detections // 2)  # the objects that half of the detections lie near
    away = images * detections - len(near)
    found = [thing(owners[place], kinds[place], box) for place, box in zip(
        near, (boxes_N4[near] * random.normal(1, 0.06, (len(near), 4))).clip(2), strict=True)]
    found += [thing(owner, kind, box) for owner, kind, box in zip(
        random.integers(1, images + 1, away), random.choice(ids, away), random_boxes(random, away), strict=True)]
    scores = random.random(len(found)).astype(np.float32).tolist()
    write_json(folder / "truth.json", {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
                   for number in range(1, images + 1)], "categories": categories, "annotations": truth})
    for kind, other in zip(KINDS, ("segmentation", "bbox"), strict=True):
        write_array(folder / f"{kind}.json", ({**{name: value for name, value in entry.items() if name != other},
                                               "score": score} for entry, score in zip(found, scores, strict=True)))


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    """x, y, width, height [count,4] in pixels, of COCO's range of sizes."""
    sides_N2 = np.exp(random.normal(np.log(70), 0.9, (count, 2))).clip(6, 400)
    return np.concatenate([random.random((count, 2)) * ([WIDTH, HEIGHT] - sides_N2), sides_N2], axis=1)


def thing(image: int, category: int, box_4: np.ndarray) -> dict[str, Any]:
    """The ellipse in a box, as COCO's results name it."""
    outline = (box_4[:2] + box_4[2:] / 2 * (1 + CORNERS)).ravel().tolist()
    rle = masks.frPyObjects([outline], HEIGHT, WIDTH)[0]
    return {"image_id": int(image), "category_id": int(category), "bbox": box_4.tolist(),
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}}


if __name__ == "__main__":
    sys.exit(main())
