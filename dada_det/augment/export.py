"""A Policy as data, and as code that runs where dada_det is not installed: torchvision v2, timm, mmpretrain, mmdet.

The code for the first three is one file: the sub-policies, `draw`, and one line an operation that calls the target.
`draw` is the same in all three and takes from torch's global generator what PolicyTransform takes, so equal seeds give
equal draws. If a target's function gives other pixels than ours, `limits` says which and by how much;
tests/augment/test_augment_export.py measures it.
"""

import json
from collections.abc import Callable
from string import Template
from typing import Any

from dada_det.augment.export_code import (
    DRAWING,
    MAGNITUDES,
    MMDET,
    MMPRETRAIN,
    MMPRETRAIN_OPERATIONS,
    TIMM,
    TIMM_OPERATIONS,
    TORCHVISION,
    TORCHVISION_OPERATIONS,
)
from dada_det.augment.operations import CUTOUT_COLOR, INDEX, OPERATION_NAMES, OPERATIONS, value_of
from dada_det.augment.policy import Operation, Policy

# Operation -> (levels, share of the pixels): the most by which a target's own function was measured to differ from
# Pillow's, on noise and photographs of 37 to 224 px. torchvision's v2 kernels on uint8 tensors (PIL images it hands to
# Pillow):
TENSOR_DIFFERENCES = {"ShearX": (255, 0.025), "ShearY": (255, 0.025), "Rotate": (255, 0.015), "AutoContrast": (1, 0.05),
                      "Contrast": (1, 1.0), "Color": (1, 0.65), "Sharpness": (1, 0.02)}
# mmcv's functions, which mmpretrain's transforms call:
MMCV_DIFFERENCES = {"ShearX": (255, 0.16), "ShearY": (255, 0.16), "Rotate": (255, 0.015), "Contrast": (1, 0.2),
                    "Color": (2, 0.9), "Sharpness": (130, 0.5)}

UNITS = {"": None, "shear": "pixels a pixel", "share": "share of the width", "degrees": "degrees", "bits": "bits",
         "threshold": "threshold", "factor": "factor"}


def as_data(policy: Policy) -> dict[str, Any]:
    """The policy in plain JSON values and real units, for programs that know nothing of magnitudes.

    Returns:
        {"sha256", "uniform_strength", "mirror" (if the policy says), "sub_policies": [{"weight", "operations": [{"name",
        "probability", "unit", "spans", and unless the strength is uniform "values", "spread"}]}]}.
        weight: fraction of the images; the sum is 1. Images that stay as they are have a sub-policy without operations.
        values: one value, or two equally likely ones if the operation has a sign. spans: the values at magnitude 0
        and 1, for each sign; Posterize cuts to whole bits. With spread > 0 each image draws its place in the span, 0..1:
        the logit is normal with standard deviation `spread` around that of the value. With uniform_strength the place
        is uniform.
    """
    mirror = {} if policy.mirror is None else {"mirror": policy.mirror}
    return {"sha256": policy.sha256, "uniform_strength": policy.uniform_strength, **mirror,
            "sub_policies": [{"weight": weight, "operations": [_operation_data(each, policy) for each in operations]}
                             for weight, operations in shares(policy)]}


def shares(policy: Policy) -> list[tuple[float, tuple[Operation, ...]]]:
    """(share of the images, its operations) of each sub-policy, before them images that stay as they are; sum 1."""
    total = sum(sub_policy.weight for sub_policy in policy.sub_policies)
    unaugmented = [(float(policy.unaugmented), ())] if policy.unaugmented else []
    return [*unaugmented, *(((1 - policy.unaugmented) * (sub_policy.weight / total), sub_policy.operations)
                            for sub_policy in policy.sub_policies)]


def _operation_data(operation: Operation, policy: Policy) -> dict[str, Any]:
    name, spec = operation.name, OPERATIONS[operation.name]
    signs = () if not spec.unit else (1.0, -1.0) if spec.range(policy.ranges).mirrored else (1.0,)

    def values(magnitude: float) -> list[float]:
        return list(dict.fromkeys(float(value_of(INDEX[name], magnitude, sign, policy.ranges)) for sign in signs))

    data = {"name": name, "probability": float(operation.probability),
            "unit": "share of the height" if name == "TranslateY" else UNITS[spec.unit],
            "spans": [[float(value_of(INDEX[name], end, sign, policy.ranges)) for end in (0.0, 1.0)] for sign in signs]}
    drawn = {} if policy.uniform_strength else {"values": values(operation.magnitude),
                                                "spread": float(operation.spread or 0.0)}
    return {**data, **drawn}


def export(policy: Policy, target: str) -> str:
    """The policy for `target` (one of TARGETS) as Python code, or for "data" as JSON."""
    return TARGETS[target](policy)


def limits(policy: Policy, target: str) -> list[str]:
    """One sentence for each operation of `policy` for which `target`'s own functions give other pixels than dada_det."""
    used = _used(policy)
    sentences = ["mirror: the policy was searched without horizontal flips, which are no part of it; leave the random flip "
                 "out of the pipeline"] * (policy.mirror is False)
    if target == "torchvision":
        sentences += _differences(used, TENSOR_DIFFERENCES, "on uint8 tensors v2's", "on PIL images equal")
    if target == "timm":
        sentences += ["Cutout: timm has none for PIL images; the code draws it with Pillow, equal"] * ("Cutout" in used)
    if target == "mmpretrain":
        sentences += _differences(used, MMCV_DIFFERENCES, "mmcv's", "the code calls Pillow instead, equal") + [
            "Cutout: mmcv's takes whole pixels and leaves out the right and lower edge; the code fills the box itself, "
            "equal"] * ("Cutout" in used)
    return sentences


def _differences(used: list[str], table: dict[str, tuple[int, float]], whose: str, way_out: str) -> list[str]:
    """The figures of `table` in words; a Translate differs only where Pillow's own running sum decides."""
    sentences = []
    for levels, share in dict.fromkeys(table[name] for name in used if name in table):
        names = ", ".join(name for name in used if table.get(name) == (levels, share))
        sentences.append(f"{names}: {whose} own function was measured to differ by up to {levels} "
                         f"level{'s' * (levels > 1)} in up to {100 * share:g} % of the pixels; {way_out}")
    if moved := [name for name in ("TranslateX", "TranslateY") if name in used]:
        sentences.append(f"{', '.join(moved)}: {whose} own function may end a pixel further where the shift is within "
                         f"rounding of half a pixel; {way_out}")
    return sentences


def _used(policy: Policy) -> list[str]:
    named = {operation.name for sub_policy in policy.sub_policies for operation in sub_policy.operations}
    return [name for name in OPERATION_NAMES if name in named]


def _head(policy: Policy, target: str) -> str:
    """The comment that opens the code; it holds none of the file's own words, which may be anything."""
    lines = [f"An augmentation policy of {len(policy.sub_policies)} sub-policies for {target}, written by dada_det's "
             "tools/export_policy.py.", f"sha256 of the policy: {policy.sha256}"]
    return "\n".join(f"# {line}" for line in (*lines, *limits(policy, target)))


def _code(target: str, template: Template, operations: dict[str, str]) -> Callable[[Policy], str]:
    def fill(policy: Policy) -> str:
        used = _used(policy)
        spread = any(operation.spread for sub_policy in policy.sub_policies for operation in sub_policy.operations)
        ranges = [(name, OPERATIONS[name].range(policy.ranges)) for name in used]
        labels, weighted = policy.labels(), [(float(each.weight), each.operations) for each in policy.sub_policies]
        if policy.unaugmented:  # one row more, of no operation
            labels, weighted = [f"{100 * policy.unaugmented:4.1f} %  as they are", *labels], shares(policy)
        drawing = DRAWING.substitute(
            ranges="\n".join(f"    {name!r}: {(*span[:3], bool(span.mirrored))}," for name, span in ranges),
            sub_policies="\n".join(
                f"    # {label}\n    ({weight!r}, [{', '.join(map(_row, operations))}]),"
                for label, (weight, operations) in zip(labels, weighted, strict=True)),
            magnitudes=MAGNITUDES["uniform" if policy.uniform_strength else "spread" if spread else "fixed"])
        return template.substitute(
            head=_head(policy, target), drawing=drawing, color=CUTOUT_COLOR,
            operations="\n".join(f"    {name!r}: lambda image, value, center: {operations[name]}," for name in used))
    return fill


def _row(operation: Operation) -> str:
    return repr((operation.name, float(operation.probability), float(operation.magnitude), float(operation.spread or 0.0)))


def _mmdet(policy: Policy) -> str:
    data = policy.to_dict()
    sub_policies = "\n".join(f"            {entry!r}," for entry in data.pop("sub_policies"))
    return MMDET.substitute(head=_head(policy, "mmdet"), sub_policies=sub_policies,
                            others=",\n        ".join(f"{key}={value!r}" for key, value in data.items()))


def _data(policy: Policy) -> str:
    return json.dumps(as_data(policy), indent=1) + "\n"


TARGETS: dict[str, Callable[[Policy], str]] = {
    "torchvision": _code("torchvision", TORCHVISION, TORCHVISION_OPERATIONS),
    "timm": _code("timm", TIMM, TIMM_OPERATIONS),
    "mmpretrain": _code("mmpretrain", MMPRETRAIN, MMPRETRAIN_OPERATIONS),
    "mmdet": _mmdet,
    "data": _data,
}
