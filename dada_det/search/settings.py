"""What a search by DADA does: its settings, the two sets of them that MODES names, and the check of single changes."""

import math
from dataclasses import dataclass, fields, replace

from dada_det.errors import UserError
from dada_det.search.distribution import SHARED
from dada_det.search.step import VAL_STATISTICS

ESTIMATORS = ("marginal", "score", "relax", "gumbel")
PAPER_ENTRIES = ["ranges", "estimator", "temperature"]  # all else is as printed
PAPER_ESTIMATORS = ("relax", "score", "gumbel")  # of a logit; "marginal" scores drawn magnitudes too
REWARD_STATISTICS = ("batch", "running")
BASELINES = ("unaugmented", "half", "second_draw", "batch", "none")


@dataclass(frozen=True)
class Settings:
    """What a search does; MODES names the two sets of them, a config's `search` changes single entries."""

    mode: str
    ranges: str  # of the magnitudes: "strength" | "autoaugment"
    unconstrained: bool  # logits, or numbers clamped to 0..1
    shared: str  # what all sub-policies that hold an operation have in common, of distribution.SHARED
    spread: float | None  # of the magnitude's normal on its logit; None: the magnitude itself, straight-through (Eq. 10)
    clean: float  # share of the training images that the weights see without their policy
    draws: int  # of each image in a step
    reward_statistics: str  # BatchNorm's in the reward passes: of that "batch" of all policies, or "running" as in later use
    log_losses: bool  # R_i is the derivative of log(1 + l_i), where a hard image counts no more than others, not of l_i
    baseline: str  # what is subtracted from R_i
    val_batches: int  # images of a validation batch over those of a training batch
    val_every: int  # steps from one validation pass to the next; between them v is its running mean as it is
    val_statistics: str  # BatchNorm's in the validation pass: its own "batch", "running" as in later use, or "both" in turn
    normalise: bool  # divide the rewards by their spread
    v_decay: float | None  # of the running mean of the validation gradient's direction over steps; 0: this step's alone
    preconditioned: bool  # the validation gradient is divided by the weights' curvature (dada_det.search.curvature)
    warmup_epochs: int  # epochs that train the weights alone
    estimator: str
    temperature: float = 0.5
    entropy: float = 0.0  # coefficient of the entropy of p(sub-policy) beside rewards whose spread is 1
    average: float = 0.0  # share of the last steps whose mean parameters are the saved policy; 0: those of the last step


MODES = {
    "default": Settings(mode="default", ranges="strength", unconstrained=True, shared="all", spread=1.5, clean=0.75,
                        draws=2, reward_statistics="running", log_losses=True, baseline="batch", val_batches=1,
                        val_every=2, val_statistics="both", normalise=True, v_decay=0.9, preconditioned=True,
                        warmup_epochs=1, estimator="marginal"),
    "paper": Settings(mode="paper", ranges="autoaugment", unconstrained=False, shared="none", spread=None, clean=0.0,
                      draws=1, reward_statistics="batch", log_losses=False, baseline="none", val_batches=1,
                      val_every=1, val_statistics="batch", normalise=False, v_decay=None, preconditioned=False,
                      warmup_epochs=0, estimator="relax"),
}


def settings_for(mode: str = "default", **changes: object) -> Settings:
    """The settings of a mode with single entries changed; UserError for a mode, entry or value that does not exist."""
    if mode not in MODES:
        raise UserError(f"search has no mode {mode!r}; modes: {', '.join(MODES)}")
    known = PAPER_ENTRIES if mode == "paper" else DEFAULT_ENTRIES
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} in the mode {mode}; entries: {', '.join(known)}")
    settings = replace(MODES[mode], **changes)  # type: ignore[arg-type]
    for entry, value, choices in (("estimator", settings.estimator, PAPER_ESTIMATORS if mode == "paper" else ESTIMATORS),
                                  ("baseline", settings.baseline, BASELINES),
                                  ("val_statistics", settings.val_statistics, VAL_STATISTICS),
                                  ("reward_statistics", settings.reward_statistics, REWARD_STATISTICS),
                                  ("shared", settings.shared, SHARED),
                                  ("ranges", settings.ranges, ("strength", "autoaugment"))):
        if value not in choices:
            raise UserError(f"search.{entry} is {value!r}; choose one of {', '.join(choices)}")
    for entry, least in (("draws", 1), ("val_batches", 1), ("val_every", 1), ("warmup_epochs", 0)):
        value = getattr(settings, entry)
        if not isinstance(value, int) or value < least:
            raise UserError(f"search.{entry} is {value!r}; give a whole number of at least {least}")
    if not isinstance(settings.temperature, int | float) or not settings.temperature > 0:
        raise UserError(f"search.temperature is {settings.temperature!r}; give a number above 0")
    if settings.spread is not None and (not isinstance(settings.spread, int | float) or not settings.spread > 0):
        raise UserError(f"search.spread is {settings.spread!r}; give a number above 0, or None for straight-through")
    if not isinstance(settings.entropy, int | float) or not 0 <= settings.entropy < math.inf:
        raise UserError(f"search.entropy is {settings.entropy!r}; give a number of at least 0")
    if mode != "paper" and not (isinstance(settings.v_decay, int | float) and 0 <= settings.v_decay < 1):
        raise UserError(f"search.v_decay is {settings.v_decay!r}; give a number of at least 0 and below 1")
    if not isinstance(settings.clean, int | float) or not 0 <= settings.clean <= 1:
        raise UserError(f"search.clean is {settings.clean!r}; give a share from 0 to 1")
    if not isinstance(settings.average, int | float) or not 0 <= settings.average <= 1:
        raise UserError(f"search.average is {settings.average!r}; give a share from 0 to 1")
    for entry in ("log_losses", "normalise", "preconditioned"):
        if not isinstance(getattr(settings, entry), bool):
            raise UserError(f"search.{entry} is {getattr(settings, entry)!r}; give True or False")
    if settings.spread is None and settings.estimator == "marginal":
        raise UserError("search.spread=None needs search.estimator score, relax or gumbel: marginal scores drawn strengths")
    if settings.baseline in ("second_draw", "half") and settings.draws < 2:
        raise UserError(f"search.baseline={settings.baseline!r} needs search.draws of at least 2")
    return settings


DEFAULT_ENTRIES = [field.name for field in fields(Settings) if field.name not in ("mode", "unconstrained")]
