"""The name by which users' configs import ApplyPolicy; it stands in dada_det.engine.detect.policy_transform."""

from dada_det.engine.detect.policy_transform import ApplyPolicy, PolicyEpochHook

__all__ = ["ApplyPolicy", "PolicyEpochHook"]
