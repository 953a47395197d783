"""The name by which users' configs import the hook ExactResume; it stands in dada_det.engine.runtime.exact_resume."""

from dada_det.engine.runtime.exact_resume import ExactResume

__all__ = ["ExactResume"]
