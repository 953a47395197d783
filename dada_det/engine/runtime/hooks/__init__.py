"""Hooks that search, pretraining and detection share, one a file."""

from dada_det.engine.runtime.hooks.atomic_checkpoint import AtomicCheckpoint, LateRemoval, save_whole
from dada_det.engine.runtime.hooks.late_runtime_info import LateRuntimeInfo
from dada_det.engine.runtime.hooks.progress_line import ProgressLine, loss_of
from dada_det.engine.runtime.hooks.stamp_identity import StampIdentity
from dada_det.engine.runtime.hooks.stop_at_nan import NEVER, StopAtNaN

__all__ = ["NEVER", "AtomicCheckpoint", "LateRemoval", "LateRuntimeInfo", "ProgressLine", "StampIdentity", "StopAtNaN",
           "loss_of", "save_whole"]
