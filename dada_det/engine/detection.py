"""The name by which users' configs import the guarded backbones; they stand in dada_det.engine.detect.guard."""

from dada_det.engine.detect.guard import BackboneGuardHook, DADAResNet, DADATimm, LearningRateNote

__all__ = ["BackboneGuardHook", "DADAResNet", "DADATimm", "LearningRateNote"]
