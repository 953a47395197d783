"""Marks every checkpoint with the run that it belongs to."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class StampIdentity(Hook):
    """Writes into every checkpoint which run it belongs to, so that --resume refuses another run's."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["meta"]["identity"] = self.identity
