"""tools/compare_policies.py: policies held against each other under one recipe, with paired seeds."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dada_det.commands import common
from dada_det.data.folders import ImageList
from dada_det.data.splits import train_and_val
from dada_det.errors import UserError
from dada_det.files import make_folder, read_json
from dada_det.report.comparison import REFERENCE, plot, summarise, table, write_csv, write_summary

BASE_BATCH, BASE_LR = 128, 0.1  # lr in proportion to the batch, unless --lr says otherwise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for(
        "compare_policies.py", "Trains a network, from scratch or from --weights, with each policy and each of the seeds 0 "
        "to n - 1, under one recipe; equal seeds share first weights, batches and crops. Prints mean top-1 on DIR/val, its "
        "95 % interval, and "
        "the paired difference to `random` (always among the runs); writes W/comparison.csv, W/runs.csv and "
        "W/comparison.png. The same command again skips the runs that are done and goes on with those cut short.",
        "python tools/compare_policies.py --data data/imagenette --model resnet18 --epochs 30 --image-size 64 --seeds 5 \\\n"
        "      --policies learned=work_dirs/s{seed}/policy.json none uniform one-op trivial")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that holds train/<class>/* and val/<class>/*")
    parser.add_argument("--val-data", metavar="DIR", help="folder <class>/* to test on, instead of DIR/val")
    parser.add_argument("--policies", required=True, nargs="+", metavar="[NAME=]P",
                        help="a policy.json, a published name such as dada-imagenet, or none, random, uniform, one-op, "
                        "trivial, rand, cutout; {seed} in a file's name is the seed; NAME is what the row is called")
    parser.add_argument("--model", required=True, metavar="M", help="timm's name, or one of ours, such as wide_resnet40_2 "
                        "or convnet")
    common.add_weights_flag(parser)
    parser.add_argument("--epochs", required=True, type=common.positive, metavar="E")
    parser.add_argument("--seeds", type=common.positive, default=5, metavar="n", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=common.positive, default=128, metavar="N",
                        help="side of the crops in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=common.positive, default=BASE_BATCH, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--lr", type=positive_number, metavar="x",
                        help=f"(default: {BASE_LR} for a batch of {BASE_BATCH}, in proportion to the batch)")
    parser.add_argument("--weight-decay", type=positive_number, default=5e-4, metavar="x", help="(default: %(default)s)")
    common.add_mirror_flag(parser)
    parser.add_argument("--processes", type=common.positive, default=1, metavar="N",
                        help="trials side by side; the cores are shared out among them (default: %(default)s)")
    parser.add_argument("--work-dir", default="work_dirs/compare_policies", metavar="W", help="(default: %(default)s)")
    return common.run(body, parser, argv)


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def body(args: Namespace) -> None:
    names = named_policies(args.policies)
    train, test = train_and_val(args.data, args.val_data)
    if args.image_size < 8 or not 2 <= args.batch_size <= len(train):
        raise UserError(f"--image-size {args.image_size} or --batch-size {args.batch_size} does not fit: give at least 8 "
                        f"px, and 2 to {len(train)} images, which is all that {train.root} holds")
    work_dir = make_folder(args.work_dir)
    from dada_det.augment.named import resolve

    # The policies before mmengine and the images, which take seconds and minutes.
    resolved = {(name, seed): resolve(text.replace("{seed}", str(seed)), seed)
                for seed in range(args.seeds) for name, text in names.items()}
    policies = {run: policy for run, (policy, _) in resolved.items()}
    if args.mirror is None:
        args.mirror = common.mirror_of(args, {}, mirror_of_all({run: mirror for run, (_, mirror) in resolved.items()}))
    from dada_det.models.classifiers import build_classifier
    from dada_det.models.weights import check_weights

    check_weights(args.weights, args.model)
    # Sentences about unknown names and weights that do not fit come here.
    build_classifier(args.model, len(train.classes), args.image_size, args.weights)
    try:
        compare(args, policies, train, test, work_dir)
    except KeyboardInterrupt:
        print("compare  the same command goes on where this one stopped", file=sys.stderr)
        raise
    report(args, list(names), work_dir, train, test)


def mirror_of_all(said: dict[tuple[str, int], bool | None]) -> bool | None:
    """What the files of the policies (name, seed) say about flips, None where none does.

    Raises:
        UserError: some say yes and some no.
    """
    answers = {mirror: name for (name, _), mirror in said.items() if mirror is not None}
    if len(answers) == 2:
        raise UserError(f"the policy {answers[True]} was searched with flips and {answers[False]} without, and all are "
                        "trained by one recipe; give --mirror or --no-mirror")
    return next(iter(answers), None)


def named_policies(texts: Sequence[str]) -> dict[str, str]:
    """Rows and their policies as given; `random`, the reference, comes last where nobody asked for it."""
    names = common.named(texts, "--policies")
    if names.setdefault(REFERENCE, REFERENCE) != REFERENCE:
        raise UserError(f"--policies calls {names[REFERENCE]} {REFERENCE!r}, which is the name of the reference; choose "
                        "another name")
    return names


def compare(args: Namespace, policies: dict[tuple[str, int], Any], train: ImageList, test: ImageList,
            work_dir: Path) -> None:
    """Decodes the images once and runs every trial that has not ended yet."""
    import torch

    from dada_det.data.imagenet import decode_to_memory
    from dada_det.engine.compare.trial import Recipe
    from dada_det.engine.compare.trials import Run, run_trials
    from dada_det.models.weights import preprocessing_of

    recipe = Recipe(model=args.model, classes=len(train.classes), image_size=args.image_size, epochs=args.epochs,
                    batch_size=args.batch_size, lr=args.lr or BASE_LR * args.batch_size / BASE_BATCH,
                    weight_decay=args.weight_decay, mirror=args.mirror,
                    precision="bfloat16" if torch.cuda.is_available() else "float32", weights=args.weights)
    prepared = preprocessing_of(args.weights, args.model)
    runs = [Run(name, seed, policy) for (name, seed), policy in policies.items()]
    print(f"compare  {len(runs)} runs of {args.model}, {args.epochs} epochs each, on {len(train)} + {len(test)} images of "
          f"{args.image_size} px", flush=True)
    memories = [decode_to_memory(train, args.image_size, "compare", interpolation=prepared.interpolation),
                decode_to_memory(test, args.image_size, "compare", interpolation=prepared.interpolation,
                                 crop_share=prepared.crop_share)]
    run_trials(runs, memories[0], memories[1], recipe, work_dir, args.processes)


def report(args: Namespace, names: Sequence[str], work_dir: Path, train: ImageList, test: ImageList) -> None:
    """Table, CSV files and plot, all from what the trials have written."""
    from dada_det.engine.compare.trial import METRICS
    from dada_det.engine.compare.trials import Run

    rows: list[dict[str, Any]] = []
    accuracies: dict[str, list[float]] = {}
    for name in names:
        for seed in range(args.seeds):
            found = read_json(Run(name, seed, None).folder(work_dir) / METRICS, "trial's result")
            identity = found["identity"]
            accuracies.setdefault(name, []).append(found["top1"])
            rows.append({"policy": name, "seed": seed, "top1": found["top1"], "top5": found["top5"],
                         **{key: identity[key] for key in ("model", "epochs", "image_size", "batch_size", "lr",
                                                           "weight_decay", "mirror", "precision")},
                         "classes": len(train.classes), "train_images": len(train), "test_images": len(test),
                         "policy_hash": identity["policy"], "data_hash": identity["data"],
                         "hardware": found["hardware"], **found["versions"]})
    summaries = summarise(accuracies)
    write_csv(work_dir / "runs.csv", rows)
    write_summary(work_dir / "comparison.csv", summaries)
    plot(work_dir / "comparison.png", accuracies, summaries,
         f"{args.model}, {args.epochs} epochs, {len(train)} images of {args.image_size} px, {args.seeds} seeds")
    print(table(summaries))
    print(f"compare  done: comparison.csv, comparison.png, runs.csv ({len(rows)} runs) and runs/ in {work_dir}")


if __name__ == "__main__":
    raise SystemExit(main())
