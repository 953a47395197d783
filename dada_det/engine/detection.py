"""The name by which users' configs import the guarded backbones; they stand in dada_det.engine.detect.guard.

It also registers all that train_det.py writes into the work folder's copy of a config, which so runs under any Runner.
"""

from dada_det.engine.detect import guard, whole_images  # noqa: F401  guard first, which silences what mmdet prints
from dada_det.engine.detect.guard import BackboneGuardHook, DADAResNet, DADATimm, LearningRateNote
from dada_det.engine.evaluate import numbered_metric  # noqa: F401
from dada_det.engine.runtime import hooks  # noqa: F401

__all__ = ["BackboneGuardHook", "DADAResNet", "DADATimm", "LearningRateNote"]
