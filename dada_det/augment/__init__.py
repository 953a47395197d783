"""What an augmentation is: fifteen operations, policies made of them, and how both are applied (no MM import)."""

from dada_det.augment.named import load_transform
from dada_det.augment.operations import OPERATION_NAMES, OPERATIONS, RANGES
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.augment.space import SearchSpace
from dada_det.augment.transform import Draws, PolicyTransform, apply_draws, apply_draws_pil, apply_operation

__all__ = ["OPERATIONS", "OPERATION_NAMES", "RANGES", "Draws", "Operation", "Policy", "PolicyTransform", "SearchSpace",
           "SubPolicy", "apply_draws", "apply_draws_pil", "apply_operation", "load_transform"]
