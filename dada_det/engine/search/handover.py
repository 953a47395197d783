"""What a search's trial hands over: policy.json, verdict.json and effects.json, and what is said of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from torch import nn

from dada_det import __version__
from dada_det.augment.named import AnyPolicy
from dada_det.augment.policy import NamedPolicy, Policy
from dada_det.engine.runtime.identity import Identity, own_folder
from dada_det.engine.search.problem import search_device
from dada_det.engine.search.trainings import Trainings
from dada_det.engine.search.trial import Trial
from dada_det.files import write_json
from dada_det.search.candidates import Effect
from dada_det.search.ranks import world
from dada_det.search.training import ADAMW, SGD, TrainingRecipe
from dada_det.search.verdict import PLAIN, Standing, Verdict

TRAININGS = "trainings"
RECIPE = ("type", "lr", "momentum", "nesterov", "weight_decay")  # what TrainingRecipe has fields for


def decide(config: Config, data: Trainings, network: Callable[[], nn.Module], proposed: Policy, operations: Sequence[str],
           low: torch.dtype | None, identity: Identity, resume: bool, provenance: dict[str, Any]) -> str:
    """Holds what alignment has proposed, and families of `operations`, against the fixed policies; returns the closing line.

    The trainings have the search's optimizer, rate, batch, momentum (Nesterov's, unless weights_optimizer.nesterov is False)
    and weight decay, and a cosine by steps. One process trains on the whole batch, in passes of at most base_batch_size.
    Their results stay in the work folder's TRAININGS. A resumed search of the same `identity` takes them from there; without
    `resume`, or if they are another search's, they are deleted first.
    """
    torch.manual_seed(config.seed)
    weights = config.weights_optimizer
    kind = weights.get("type", SGD)
    recipe = TrainingRecipe(steps=0, lr=weights.lr * config.batch_size / config.base_batch_size,
                            momentum=weights.get("momentum", 0.0), nesterov=weights.get("nesterov"),
                            weight_decay=weights.get("weight_decay", 0.01 if kind == ADAMW else 0.0),  # torch's own
                            clip_grad=config.clip_grad, optimizer=kind, at_once=config.base_batch_size,
                            options={name: value for name, value in weights.items() if name not in RECIPE})
    folder = Path(config.work_dir, TRAININGS)
    for first in (True, False):  # then the others, whose machines may have folders of their own
        if (world()[0] == 0) == first:
            own_folder(folder, identity, keep=resume or not first, written="*.pth")
        barrier()
    trial = Trial(data, channels_last(network().to(search_device())), recipe, config.epochs, config.seed, folder, low,
                  operations)
    found, policies, effects = trial.run({"aligned": proposed})
    if world()[0] == 0:
        said = hand_over(trial, found, policies, effects, config.work_dir, config.mirror,
                         {**provenance, "epoch": config.epochs, "version": __version__})
        print(table_of(found, data.reference, data.figure))
        print(f"search  {said}; {trial.trained} trainings, {trial.cost:.1f} times the images of one whole training")
    return (f"`{found.winner}` in {config.work_dir}/policy.json; beside it verdict.json and effects.json of the trial, and "
            "proposal.json and search.json of the alignment")


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def hand_over(trial: Trial, found: Verdict, policies: dict[str, AnyPolicy], effects: Sequence[Effect],
              work_dir: str | Path, mirror: bool, provenance: dict[str, Any]) -> str:
    """Writes the three files into `work_dir`; returns the sentence of the verdict."""
    images = sum(len(fold.val) for fold in trial.data.folds)
    said = sentence(found, trial.data.reference, images)
    winner = found.of(found.winner)
    provenance = {**provenance, "winner": winner.name}
    policy = policies[winner.name]
    chosen: Policy | NamedPolicy = replace(policy, provenance=provenance, mirror=mirror) \
        if winner.kind == "found" and isinstance(policy, Policy) else \
        NamedPolicy(winner.name, trial.seed if winner.name == "random" else None, mirror, provenance)
    write_json(Path(work_dir, "effects.json"),
               {"schema": 1, "unit": f"{trial.data.unit}, for each time that the operation acts on an image",
                "operations": [row_of_effect(effect) for effect in effects]})
    write_json(Path(work_dir, "verdict.json"), {
        "schema": 1, "winner": winner.name, "told_apart": found.told_apart, "learned": found.learned,
        "best_fixed": found.best_fixed, "reference": trial.data.reference, "figure": trial.data.figure,
        "unit": trial.data.unit, "sentence": said, "validation_images": images,
        "trainings": trial.trained, "cost": round(trial.cost, 2), "candidates": [row_of(each) for each in found.table]})
    write_json(Path(work_dir, "policy.json"), chosen.to_dict())
    return said


def sentence(found: Verdict, reference: str, images: int) -> str:
    """What the verdict says, with the difference in points that a training on all images is expected to show.

    Nothing is said of a difference if the reference wins, or if its training diverged.
    """
    winner = found.of(found.winner)
    if not found.learned:
        return (f"no network of the trial is better than guessing on your {images} validation images, so its differences "
                f"are noise; `{winner.name}` is handed over; search again with more --epochs, with --weights, with "
                "another weights_optimizer.lr, or with more images or smaller --groups: a handful shows no more")
    points = ""
    if reference in [standing.name for standing in found.table if standing.name != winner.name]:
        points = (f"; in a training on all images {winner.expected.mean:+.1f} ± {winner.expected.error:.1f} points to "
                  f"{reference} are expected")
    if found.told_apart:
        return (f"`{winner.name}`, found by the search, is better than the best fixed policy, {found.best_fixed}, on your "
                f"{images} validation images{points}")
    if winner.kind == "found":
        return (f"`{winner.name}`, found by the search, has the best score on your {images} validation images, but is not "
                f"clearly better than the best fixed policy, {found.best_fixed}{points}")
    if winner.name == PLAIN and found.best_fixed != PLAIN:
        return (f"no fixed policy is clearly better than none on your {images} validation images, and nothing that the "
                f"search found is clearly better than {found.best_fixed}; `{winner.name}` is handed over{points}")
    return (f"nothing that the search found is clearly better than the best fixed policy on your {images} validation "
            f"images; `{winner.name}` is handed over{points}")


def row_of(standing: Standing) -> dict[str, Any]:
    """A candidate's row: accuracy (or AP) in percent, differences to the reference in points, score in Trainings.unit."""
    return {"name": standing.name, "kind": standing.kind, "accuracy": round(standing.accuracy, 2),
            "difference": round(standing.points.mean, 2), "standard_error": round(standing.points.error, 2),
            "expected": round(standing.expected.mean, 2), "expected_error": round(standing.expected.error, 2),
            "score": round(standing.score.mean, 4), "score_error": round(standing.score.error, 4),
            "shrunken": round(standing.shrunken.mean, 4), "shrunken_error": round(standing.shrunken.error, 4)}


def row_of_effect(effect: Effect) -> dict[str, Any]:
    return {"name": effect.name, "effect": round(effect.value.mean, 4), "standard_error": round(effect.value.error, 4)}


def table_of(found: Verdict, reference: str, figure: str = "top-1 %") -> str:
    """The verdict's table for the screen, the best first by its last column, the shrunken score."""
    width = max(len(standing.name) for standing in found.table)
    lines = [f"{'policy':{width}}  {figure:>8}  points to {reference}  score, shrunken"]
    for standing in found.table:
        mark = "  <- handed over" if standing.name == found.winner else ""
        points, score = standing.points, standing.shrunken
        lines.append(f"{standing.name:{width}}  {standing.accuracy:8.1f}  {points.mean:+6.1f} ± {points.error:4.1f}   "
                     f"  {score.mean:+.3f} ± {score.error:.3f}{mark}")
    return "\n".join(lines)
