"""The name by which others' scripts import the evaluation; it stands in dada_det.engine.evaluate.figures."""

from dada_det.engine.evaluate.figures import FIGURES, evaluate_results

__all__ = ["FIGURES", "evaluate_results"]
