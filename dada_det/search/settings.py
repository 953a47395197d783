"""What a search by DADA does: the settings of its two modes, and the check of single changes."""

from dataclasses import dataclass, replace

from dada_det.augment.operations import RANGES
from dada_det.errors import UserError

ESTIMATORS = ("relax", "score", "gumbel")


@dataclass(frozen=True)
class DadaSettings:
    """The settings of one search; MODES holds those of each mode, and a config's `search` changes single entries.

    mode: "default", or "paper" for the equations as printed.
    ranges: the table of the magnitudes' ranges, "strength" or "autoaugment".
    spread: the standard deviation of a magnitude's normal on the logit. None, in paper mode: magnitudes are not drawn, and
        their gradient is straight-through (Eq. 10).
    unaugmented: the fraction of each batch, 0..1, that is trained unaugmented.
    draws_per_image: how many policies each image of a batch draws in a step, with a reward each.
    val_every: steps from one validation pass to the next.
    warmup_epochs: epochs that train the weights alone.
    estimator, temperature: of the gradient of Eq. 19, in paper mode.
    """

    mode: str = "default"
    ranges: str = "strength"
    spread: float | None = 1.5
    unaugmented: float = 0.75
    draws_per_image: int = 2
    val_every: int = 2
    warmup_epochs: int = 1
    estimator: str = "relax"
    temperature: float = 0.5
    val_batches = 1  # no entry

    @property
    def running_v(self) -> bool:
        """Whether the step keeps a running mean of the validation gradient's direction (StepSettings)."""
        return self.mode == "default"

    def __post_init__(self) -> None:
        """UserError for a value that does not exist."""
        for entry, value, choices in (("estimator", self.estimator, ESTIMATORS), ("ranges", self.ranges, RANGES)):
            if value not in choices:
                raise UserError(f"search.{entry} is {value!r}; choose one of {', '.join(choices)}")
        for entry, least in (("draws_per_image", 1), ("val_every", 1), ("warmup_epochs", 0)):
            value = getattr(self, entry)
            if not isinstance(value, int) or value < least:
                raise UserError(f"search.{entry} is {value!r}; give a whole number of at least {least}")
        for entry in ("temperature", "spread"):
            value = getattr(self, entry)
            if (entry, value, self.mode) != ("spread", None, "paper") and not (isinstance(value, int | float) and value > 0):
                raise UserError(f"search.{entry} is {value!r}; give a number above 0")
        if not isinstance(self.unaugmented, int | float) or not 0 <= self.unaugmented <= 1:
            raise UserError(f"search.unaugmented is {self.unaugmented!r}; give a fraction from 0 to 1")


MODES = {"default": DadaSettings(),
         "paper": DadaSettings(mode="paper", ranges="autoaugment", spread=None, unaugmented=0.0, draws_per_image=1,
                               val_every=1, warmup_epochs=0)}
ENTRIES = {"default": ("ranges", "spread", "unaugmented", "draws_per_image", "val_every", "warmup_epochs"),
           "paper": ("ranges", "estimator", "temperature")}  # all else is as printed


def dada_settings(mode: str = "default", **changes: object) -> DadaSettings:
    """The settings of a mode with single entries changed.

    Raises:
        UserError: the mode or an entry is unknown, or a value is impossible.
    """
    if not isinstance(mode, str) or mode not in MODES:
        raise UserError(f"search has no mode {mode!r}; modes: {', '.join(MODES)}")
    unknown = [name for name in changes if name not in ENTRIES[mode]]
    if unknown:
        raise UserError(f"search has no entry {unknown[0]} in the mode {mode}; entries: {', '.join(ENTRIES[mode])}")
    return replace(MODES[mode], **changes)  # type: ignore[arg-type]
