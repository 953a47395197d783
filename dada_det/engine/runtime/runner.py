"""mmengine's Runner with a quiet console."""

import functools
import itertools
import logging
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from dada_det.engine.runtime import hooks  # noqa: F401 (registers those that configs name)
from dada_det.engine.runtime.faults import LoaderTimeout, explained, starting
from dada_det.errors import UserError

_runs = itertools.count()
# What mmengine warns about in every run, whatever the user does.
NOISE = ("Dataset ", "The prefix is not set in metric class", '"FileClient" will be', '"HardDiskBackend" is',
         "Skip advancing dataloader")  # ExactResume has done that

# The methods that build what a config says: the last word is the entry's name.
BUILDERS = ("build_model", "build_optim_wrapper", "build_param_scheduler", "build_train_loop", "build_val_loop",
            "build_test_loop", "register_hooks", "build_evaluator", "build_log_processor")


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner with its log in the file only; the console keeps real warnings, and ProgressLine has it.

    Faults of the machine (engine/runtime/faults.py) and configs that cannot be built are said in one sentence.
    """

    def __init__(self, *arguments: Any, experiment_name: str | None = None, **options: Any) -> None:
        # mmengine tells runs apart by the second; two of one process must not share log and loss history.
        with starting(options.get("work_dir", "its folder")):
            super().__init__(*arguments, experiment_name=f"{experiment_name or 'run'}_{next(_runs)}", **options)
        self.register_hook(LoaderTimeout())

    def train(self) -> torch.nn.Module:
        with explained(self):
            return super().train()

    def val(self) -> dict[str, Any]:
        with explained(self):
            return super().val()

    def test(self) -> dict[str, Any]:
        with explained(self):
            return super().test()

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        if isinstance(visualizer, dict):  # visualisers are kept by name too
            visualizer = {**visualizer, "name": self._experiment_name}
        return super().build_visualizer(visualizer)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **options: Any) -> MMLogger:
        logger = super().build_logger(log_level, log_file, **options)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is said once, elsewhere
            else:
                handler.setLevel(max(handler.level, logging.WARNING))
                handler.addFilter(lambda record: not record.getMessage().startswith(NOISE))
        return logger


def explaining(method: Any) -> Any:
    """`method`, whose errors about a config's values become UserError."""
    @functools.wraps(method)
    def build(runner: Runner, *arguments: Any, **options: Any) -> Any:
        try:
            return method(runner, *arguments, **options)
        except (TypeError, ValueError, KeyError, AttributeError, AssertionError, IndexError, NotImplementedError) as error:
            entry = method.__name__.partition("_")[2]
            said = str(error.args[0] if error.args else type(error).__name__).split(". Please")[0].strip()
            raise UserError(f"the config's {entry} cannot be built: {said}; correct its entries") from error

    return build


for _name in BUILDERS:
    setattr(QuietRunner, _name, explaining(getattr(QuietRunner, _name)))
