"""Planted policies: validation images transformed by one operation, which the search must put first.

    python tools/bench/planted.py --operations Rotate Invert --seeds 2 --modes default paper

The images are scikit-learn's digits, enlarged to 16 px and tinted: 600 train, 600 are transformed and validate. Each search
runs through tools/search_imagenet.sh's own command (--val-data). Columns: auc, the ranking AUC of the sub-policies that hold
the planted operation over all 105 preferences; rank of the operation among the fifteen by probability of use.
"""

import argparse
import contextlib
import io
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from dada_det.augment import apply_operation
from dada_det.commands.search import main as search
from dada_det.files import write_json

STRENGTH = {"Solarize": 0.8}  # 0.95 would invert everything; all others are planted at 0.95 of their range
TRAIN = 600
PAPER = ["search.mode=paper", "policy_optimizer.lr=0.005"]
ALL = ["Rotate", "TranslateX", "Invert", "Solarize", "Equalize"]


def write_planted(root: Path, operation: str, seed: int) -> Path:
    """root/train/<digit>/*.png and, transformed by `operation` with a random sign, root/val/<digit>/*.png."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits()
    images = F.interpolate(torch.tensor(digits.images)[:, None].float() / 16, 16, mode="bilinear")
    labels = torch.tensor(digits.target)
    tint = 0.4 + 0.6 * torch.rand(len(images), 3, 1, 1, generator=generator)
    images = (images * tint + 0.15 * torch.rand(len(images), 3, 1, 1, generator=generator)).clamp(0, 1)
    order = torch.randperm(len(images), generator=generator)[:2 * TRAIN]
    images, labels = (images[order] * 255).round().byte(), labels[order]
    signs = (torch.rand(TRAIN, generator=generator) < 0.5).float() * 2 - 1
    strength = torch.full((TRAIN,), STRENGTH.get(operation, 0.95))
    moved = apply_operation(images[TRAIN:], operation, strength, signs, ranges="strength", generator=generator)
    for part, pixels, names in (("train", images[:TRAIN], labels[:TRAIN]), ("val", moved, labels[TRAIN:])):
        for index, (image, label) in enumerate(zip(pixels, names.tolist(), strict=True)):
            path = root / part / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def run(mode: str, operation: str, seed: int, epochs: int) -> dict:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_planted(Path(folder, "data"), operation, seed)
        options = ["mirror=False", *(PAPER if mode == "paper" else [])]
        with contextlib.redirect_stdout(io.StringIO()):
            code = search(["--config", "configs/debug/search.py", "--data", str(data), "--val-data", str(data / "val"),
                           "--image-size", "14", "--batch-size", "50", "--epochs", str(epochs), "--seed", str(seed),
                           "--work-dir", f"{folder}/search", "--cfg-options", *options])
        if code != 0:
            raise SystemExit(code)
        found = json.loads(Path(folder, "search/search.json").read_text())
    names = [entry["name"] for entry in found["operations"]]
    holds = [any(o["name"] == operation for o in s["operations"]) for s in found["sub_policies"]]
    preferences = torch.tensor([s["preference"] for s in found["sub_policies"]])
    ours, others = preferences[torch.tensor(holds)], preferences[~torch.tensor(holds)]
    wins = (ours[:, None] > others).double() + 0.5 * (ours[:, None] == others)
    return {"mode": mode, "operation": operation, "seed": seed, "auc": wins.mean().item(),
            "rank": names.index(operation) + 1, "use": found["operations"][names.index(operation)]["use"]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="+", default=ALL, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", default=["default", "paper"], help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write hardware, versions and rows")
    args = parser.parse_args(argv)
    rows = []
    print(f"{'mode':8} {'operation':12} seed    auc  rank   use")
    for mode in args.modes:
        for operation in args.operations:
            for seed in range(args.seeds):
                row = run(mode, operation, seed, args.epochs)
                rows.append(row)
                print(f"{mode:8} {operation:12} {seed:4d}  {row['auc']:.3f}  {row['rank']:4d}  {row['use']:.2f}", flush=True)
        own = [row for row in rows if row["mode"] == mode]
        aucs = torch.tensor([row["auc"] for row in own], dtype=torch.float64)
        spread = 1.96 * aucs.std().item() / len(aucs) ** 0.5 if len(aucs) > 1 else float("nan")
        print(f"{mode:8} mean AUC {aucs.mean():.3f} ± {spread:.3f} (95 %, n = {len(own)}); first in "
              f"{sum(row['rank'] == 1 for row in own)} of {len(own)}")
    if args.json:
        write_json(args.json, {"hardware": platform.processor() or platform.machine(),
                               "versions": {name: version(name) for name in ("torch", "dada_det")}, "rows": rows})
        print(f"planted  done: {len(rows)} rows in {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
