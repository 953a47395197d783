"""What each rule of the verdict is worth: searches of natural.py judged anew, without one rule, from their stored trainings.

    python tools/bench/natural.py --problems gtsrb12 --arms none random uniform one-op trivial rand learned aligned \
        tone geometry --seeds 5 --json results/natural.json
    python tools/bench/verdicts.py results/natural.json

A search leaves what each validation image says of each training in its work folder. This tool makes the verdict from it by
other rules, and looks up in the file what a whole training with the policy that they hand over has scored. A search counts
where the file holds whole trainings of all its candidates, diverged ones aside. The rule about networks that only guess is
left out. Intervals are of 95 % over the searches, paired.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dada_det.augment.named import resolve_policy
from dada_det.commands import common
from dada_det.engine.search.handover import TRAININGS
from dada_det.engine.search.trainings import StoredTensors
from dada_det.engine.search.trial import GROUPS, result_name
from dada_det.errors import UserError
from dada_det.files import read_json
from dada_det.report.measurements import Rows, write_rows
from dada_det.report.statistics import paired_difference
from dada_det.search.verdict import CORRECT, MARGIN, MARGIN_ON_TARGET, SCORE, Comparison, Scores, verdict
from natural import CANDIDATES, PROBLEMS, WORK_DIR, policy_of, search_folder
from natural_table import FIXED, LEARNED, REFERENCE, by_arm, interval

Judge = Callable[[Scores, Sequence[Tensor], float], str]  # (scores, groups, the shipped margin) -> what is handed over
KINDS = {**dict.fromkeys(FIXED, "fixed"), **dict.fromkeys(CANDIDATES, "found")}


def winner(scores: Scores, groups: Sequence[Tensor], margin: float) -> str:
    return verdict(scores, groups, KINDS, REFERENCE, margin=margin).winner


def only(scores: Scores, names: Sequence[str] = tuple(KINDS), folds: int = 2) -> Scores:
    """The scores of some candidates on the first folds."""
    return {(name, fold): value for (name, fold), value in scores.items() if name in names and fold < folds}


def by_accuracy(scores: Scores) -> Scores:
    """Right or wrong in the place of the calibrated cross-entropy."""
    return {key: torch.stack([value[CORRECT], value[CORRECT]]) for key, value in scores.items()}


def best_mean(scores: Scores, groups: Sequence[Tensor], margin: float) -> str:
    """The largest mean score: no shrinkage, and no margin for what was found."""
    comparison = Comparison(scores, groups, SCORE)
    return max(comparison.names, key=lambda name: comparison.contrast({name: 1.0}).mean)


def without_plain(scores: Scores, groups: Sequence[Tensor], margin: float) -> str:
    """The best fixed policy where no found one wins, be it ever so little better than none."""
    found = verdict(scores, groups, KINDS, REFERENCE, margin=margin)
    return found.winner if KINDS[found.winner] == "found" else found.best_fixed


SHIPPED = "as shipped"
RULES: Mapping[str, Judge] = {
    SHIPPED: winner,
    "no verdict: what alignment proposed": lambda scores, groups, margin: "aligned",
    "no families: alignment's proposal and the fixed policies": lambda scores, groups, margin:
        winner(only(scores, (*FIXED, "aligned")), groups, margin),
    "fixed policies alone": lambda scores, groups, margin: winner(only(scores, FIXED), groups, margin),
    "the first fold alone": lambda scores, groups, margin: winner(only(scores, folds=1), groups[:1], margin),
    "accuracy for the calibrated cross-entropy": lambda scores, groups, margin: winner(by_accuracy(scores), groups, margin),
    "the largest mean: no shrinkage, no margin": best_mean,
    "no preference for none among the fixed policies": lambda scores, groups, margin: without_plain(scores, groups, margin),
    "no margin": lambda scores, groups, margin: winner(scores, groups, 0.0),
    "a margin of one standard error": lambda scores, groups, margin: winner(scores, groups, 1.0),
    "a margin of two standard errors": lambda scores, groups, margin: winner(scores, groups, 2.0),
}


def judged(row: dict, rows: Rows, folder: Path) -> dict[str, float] | None:
    """rule -> the score of a whole training with what it hands over, beside the best and the mean candidate's; None where
    the file does not hold whole trainings of all candidates."""
    arms = by_arm(rows, row["problem"])
    whole = {name: arms.get(name, {}).get(row["seed"]) for name in KINDS}
    results = StoredTensors(folder)
    groups = results.get(GROUPS)
    if groups is None:
        raise UserError(f"{folder} has no {GROUPS}.pth; run natural.py in the same --work-dir first")
    policies = {name: policy_of(name, row["seed"]) for name in KINDS if name != "aligned"}
    policies["aligned"] = resolve_policy(str(folder.parent / "proposal.json"), row["seed"])
    stored = {(name, fold): results.get(result_name(name, fold, policy)) for name, policy in policies.items()
              for fold in range(len(groups))}
    diverged = {name for (name, _), value in stored.items() if value is not None and not bool(value.isfinite().all())}
    scores = {key: value for key, value in stored.items() if value is not None and key[0] not in diverged}
    kept = {name: score for name, score in whole.items() if score is not None and (name, 0) in scores}
    if any(name not in kept for name, _ in scores):
        return None
    margin = MARGIN_ON_TARGET if PROBLEMS[row["problem"]].shift else MARGIN
    found = {rule: kept[judge(scores, groups, margin)] for rule, judge in RULES.items()}
    return {**found, "the best candidate, known afterwards": max(kept.values()),
            "the mean of all candidates": sum(kept.values()) / len(kept)}


def body(args: argparse.Namespace) -> None:
    rows = read_json(args.rows, "table")["rows"]
    found: Rows = []
    for row in rows:
        if row["arm"] == LEARNED and row["problem"] in args.problems:
            folder = search_folder(args.work_dir / f"{row['problem']}-s{row['seed']}", LEARNED) / TRAININGS
            if folder.is_dir() and (scores := judged(row, rows, folder)):
                found += [{"problem": row["problem"], "seed": row["seed"], "rule": rule, "score": score}
                          for rule, score in scores.items()]
    if not found:
        raise UserError(f"{args.rows} holds no search whose trainings are in {args.work_dir} and all of whose candidates "
                        "have whole trainings; run natural.py with the arms of this tool's --help")
    if args.json:
        write_rows(args.json, found, {"tool": "verdicts", "rules": list(RULES)})
    print("\n".join(lines_of(found)))
    print(f"verdicts  done: {len(found)} rows " + (f"in {args.json}" if args.json else "(not kept: no --json)"))


def by_rule(rows: Rows, problem: str) -> dict[str, list[float]]:
    """The scores of each rule on a problem, in the order of its searches."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["problem"] == problem:
            found.setdefault(row["rule"], []).append(row["score"])
    return found


def lines_of(rows: Rows) -> list[str]:
    """A line a rule of each problem: the mean score, and the paired difference to the shipped rule."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        found = by_rule(rows, problem)
        for rule, scores in found.items():
            difference = interval(*paired_difference(scores, found[SHIPPED]), "+")
            lines.append(f"{problem:14}  {rule:58}  {sum(scores) / len(scores):5.1f}  {difference:12}  (n = {len(scores)})")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit code (0, 2 for a user's mistake)."""
    parser = common.parser_for("verdicts.py", __doc__ or "", "python tools/bench/verdicts.py results/natural.json")
    parser.add_argument("rows", type=Path, metavar="FILE", help="the file that natural.py --json has written")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME",
                        help=f"of {', '.join(PROBLEMS)} (default: all)")
    parser.add_argument("--work-dir", type=Path, default=Path(WORK_DIR), metavar="W", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write hardware, versions and rows")
    return common.run(body, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
