"""ApplyPolicy: a policy as a step of an MMDetection pipeline, boxes and masks included.

Importing this module registers it in mmdet's TRANSFORMS and PolicyEpochHook in mmengine's HOOKS. In a config:

    custom_imports = dict(imports=["dada_det.engine.policy_transform"], allow_failed_imports=False)
    custom_hooks = [dict(type="PolicyEpochHook")]
    train_pipeline = [.., dict(type="LoadAnnotations", with_bbox=True), dict(type="ApplyPolicy", policy="dada-imagenet"), ..]

Shape legend: N instances of one image, K slots of a sub-policy (1 row of them: one image), M polygons, V vertices.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from PIL import Image
from torch import Tensor

from dada_det.augment import Draws, Policy, PolicyTransform
from dada_det.augment import boxes as geometry
from dada_det.augment.named import resolve_dict, resolve_policy
from dada_det.data.random import generator_for
from dada_det.engine.detect.config import dicts_in
from dada_det.engine.runtime import mmcv_ops
from dada_det.errors import UserError

mmcv_ops.install()  # before mmdet's structures, which import mmcv.ops
with contextlib.redirect_stdout(io.StringIO()):  # mmdet tells which optional data sets it cannot read
    from mmdet import datasets  # noqa: F401
    from mmdet.registry import TRANSFORMS
    from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type
    from mmdet.structures.mask import BitmapMasks, PolygonMasks

ONE_AN_INSTANCE = ("gt_bboxes_labels", "gt_ignore_flags", "gt_instances_ids")
NO_EPOCH = -1
IGNORED_CLASS = 255  # mmdet's default label of pixels that the semantic loss leaves out
NO_POLYGON = np.zeros(6)  # mmdet's stand-in for a missing polygon


@TRANSFORMS.register_module()
class ApplyPolicy(BaseTransform):
    """Applies a policy to the image and carries boxes, masks and the segmentation map along.

    Args:
        policy: a policy.json's path, a name (dada-imagenet, random, ..; none is no step at all), or its content as a dict.
            Its `mirror` is read by tools/train_det.py, which takes RandomFlip out of the pipeline where it is false.
        recompute_bbox: boxes from the masks that are left, as in mmdet's RandomCrop, not from the boxes' own corners.
        seed: keys the draws, and chooses the sub-policies of `random`.

    Needs `img`, uint8 [H,W,3] in BGR, which is what mmdet's LoadImageFromFile gives whatever its backend; colour
    operations see it as RGB. Stands behind LoadAnnotations, before or behind Resize and RandomFlip, and before anything
    that normalises or reorders channels. `img_shape` stays. Changed where present: gt_bboxes, gt_bboxes_labels,
    gt_ignore_flags, gt_instances_ids, gt_masks, gt_seg_map (filled with its `ignore_index`), homography_matrix.
    Bitmap masks are sampled pixel by pixel as the image is; polygons stay polygons, cut at the image's border.
    Which instances are dropped: `dada_det.augment.boxes`. An image that is left without any trains as background.

    If PolicyEpochHook tells the epoch, draws follow from (seed, epoch, index of the image). Otherwise they come from numpy's
    generator of the worker, as in mmdet's own transforms.

    Raises:
        UserError: the policy or the image cannot be used.
    """

    def __init__(self, policy: str | Path | Mapping[str, Any], recompute_bbox: bool = False, seed: int = 0) -> None:
        self.recompute_bbox, self.seed = recompute_bbox, seed
        self.source = "a dict" if isinstance(policy, Mapping) else str(policy)
        resolved = resolve_dict(policy, "ApplyPolicy's policy")[0] if isinstance(policy, Mapping) \
            else resolve_policy(self.source, seed)
        if not isinstance(resolved, Policy | None):
            raise UserError(f"the policy {self.source} moves an image without telling how, so its boxes cannot follow; "
                            "give ApplyPolicy a policy of our operations")
        self.policy_transform = None if resolved is None else PolicyTransform(resolved)
        self._epoch = torch.tensor(NO_EPOCH).share_memory_()  # persistent workers must see it change

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    @autocast_box_type()
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.policy_transform is None:
            return results
        _check(results)
        draws = self._draw(results.get("sample_idx"))
        rgb = Image.fromarray(np.ascontiguousarray(results["img"][..., ::-1]))
        results["img"] = np.ascontiguousarray(np.asarray(self.policy_transform.apply(rgb, draws))[..., ::-1])
        operations_1K, values_1K = geometry.geometry_of(draws, self.policy_transform.policy.ranges)
        if (operations_1K >= 0).any():
            _carry(results, operations_1K, values_1K, self.recompute_bbox)
        return results

    @cache_randomness
    def _draw(self, index: int | None) -> Draws:
        assert self.policy_transform is not None
        told = self._epoch >= 0 and index is not None
        keys = (self.seed, int(self._epoch), index) if told else (int(np.random.randint(2**31)),)
        return self.policy_transform.draw(1, generator_for(*keys))

    def __repr__(self) -> str:
        what = "none" if self.policy_transform is None else \
            f"{self.source}: {len(self.policy_transform.policy.sub_policies)} sub-policies, " \
            f"sha256 {self.policy_transform.policy.sha256[:12]}"
        return f"ApplyPolicy(policy=<{what}>, recompute_bbox={self.recompute_bbox}, seed={self.seed})"


@HOOKS.register_module()
class PolicyEpochHook(Hook):
    """Tells every ApplyPolicy of the training pipeline the epoch, so that a resumed run draws what it would have drawn.

    It reaches the steps of a data set and of a ConcatDataset's parts, under MMDetection's EpochBasedTrainLoop. Where an
    image may come up twice in an epoch (RepeatDataset, mosaics, loops by iteration) the workers' generators stay.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            for step in _steps(runner.train_dataloader.dataset):
                step.set_epoch(runner.epoch)


def use_policy(config: Config, policy: str) -> None:
    """Puts ApplyPolicy behind LoadAnnotations of the training's pipelines, and PolicyEpochHook; "none" changes nothing.

    A pipeline that a hook switches to in the last epochs (PipelineSwitchHook) is one of them.

    Where the pipeline loads masks, boxes are recomputed from them, as a search with masks does.

    Raises:
        UserError: the policy is unknown, or the pipeline has no place for it.
    """
    if policy == "none":
        return
    dataset = config.train_dataloader.dataset
    while "dataset" in dataset and "pipeline" not in dataset:
        dataset = dataset.dataset
    hooks, seed = config.get("custom_hooks") or [], config.get("randomness", {}).get("seed") or 0
    dataset.pipeline = _with_policy(dataset.get("pipeline", []), policy, seed, f"the training pipeline of {config.filename}")
    for hook in hooks:
        if "switch_pipeline" in hook:
            hook.switch_pipeline = _with_policy(hook.switch_pipeline, policy, seed,
                                                f"the switch_pipeline of {hook.type} in {config.filename}")
    config.custom_hooks = [*hooks, {"type": "PolicyEpochHook"}]
    imports = config.setdefault("custom_imports", {"imports": [], "allow_failed_imports": False})
    # The config that is written beside the checkpoints stands alone.
    imports["imports"] = [*imports["imports"], "dada_det.engine.policy_transform"]


def _with_policy(pipeline: Sequence[Any], policy: str, seed: int, what: str) -> list[Any]:
    """`pipeline` with ApplyPolicy behind its LoadAnnotations."""
    steps = [step["type"] for step in pipeline]
    if "ApplyPolicy" in steps:
        raise UserError(f"{what} has an ApplyPolicy already; leave --policy out, or take that step away")
    if steps.count("LoadAnnotations") != 1:
        raise UserError(f"--policy stands behind LoadAnnotations, which {what} has {steps.count('LoadAnnotations')} times; "
                        "put ApplyPolicy into the config by hand")
    place = steps.index("LoadAnnotations")
    masks = bool(pipeline[place].get("with_mask"))
    ApplyPolicy(policy, masks, seed)  # a policy that does not fit says so now
    step = {"type": "ApplyPolicy", "policy": policy, "recompute_bbox": masks, "seed": seed}
    return [*pipeline[:place + 1], step, *pipeline[place + 1:]]


def without_flips(config: Config) -> None:
    """Sets the probability of every RandomFlip of the training that mirrors left and right to 0, a hook's pipeline too."""
    for step in dicts_in([config.train_dataloader, config.get("custom_hooks")]):
        if str(step.get("type")).endswith("RandomFlip") and step.get("direction") != "vertical":
            step.prob = 0.0


def _steps(dataset: Any) -> Iterator[ApplyPolicy]:
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _steps(part)
    elif isinstance(dataset, BaseDataset):
        yield from (step for step in dataset.pipeline.transforms if isinstance(step, ApplyPolicy))


def _check(results: dict[str, Any]) -> None:
    """UserError where the annotations could not be carried along with the image."""
    image = results["img"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"ApplyPolicy needs images as uint8 [H,W,3], not {image.dtype} {list(image.shape)}; put it right "
                        "behind LoadImageFromFile (color_type='color', to_float32=False) and LoadAnnotations")
    masks, seg_map, boxes = (results.get(key) for key in ("gt_masks", "gt_seg_map", "gt_bboxes"))
    sizes = [] if masks is None else [(masks.height, masks.width)]
    sizes += [] if seg_map is None else [seg_map.shape]
    if any(tuple(size) != image.shape[:2] for size in sizes):
        raise UserError(f"ApplyPolicy got an image of {image.shape[:2]} with masks or a segmentation map of {sizes}; put "
                        "LoadAnnotations before Resize")
    if boxes is None and masks is not None:
        raise UserError("ApplyPolicy got masks without boxes; set LoadAnnotations(with_bbox=True)")
    if boxes is not None and not isinstance(boxes, HorizontalBoxes):
        raise UserError(f"ApplyPolicy carries upright boxes along, not {type(boxes).__name__}; set "
                        "LoadAnnotations(box_type='hbox')")


def _carry(results: dict[str, Any], operations_1K: Tensor, values_1K: Tensor, recompute_bbox: bool) -> None:
    """Moves everything but the image, and drops the instances that have left it from every field."""
    height, width = results["img"].shape[:2]
    if results.get("gt_seg_map") is not None:
        seg_map_1HW = torch.from_numpy(np.ascontiguousarray(results["gt_seg_map"]))[None]
        fill = results.get("ignore_index", IGNORED_CLASS)
        results["gt_seg_map"] = geometry.transform_masks(seg_map_1HW, operations_1K, values_1K, fill)[0].numpy()
    _record_homography(results, operations_1K, values_1K)
    if results.get("gt_bboxes") is None:
        return
    boxes_N4, masks = results["gt_bboxes"].tensor, results.get("gt_masks")
    masks_NHW = torch.from_numpy(np.ascontiguousarray(masks.masks)) if isinstance(masks, BitmapMasks) else None
    boxes_N4, masks_NHW, keep_N = geometry.transform_instances(boxes_N4, masks_NHW, operations_1K, values_1K,
                                                               (height, width), tight=recompute_bbox)
    if masks_NHW is not None:
        masks = BitmapMasks(masks_NHW.numpy(), height, width)
    elif isinstance(masks, PolygonMasks) and len(masks):
        masks, extents_N4, whole_N = _carry_polygons(masks, operations_1K, values_1K)
        keep_N &= whole_N
        if recompute_bbox:
            boxes_N4 = torch.where(extents_N4[:, 2:3] > 0, extents_N4.to(boxes_N4), boxes_N4)
    results["gt_bboxes"] = HorizontalBoxes(boxes_N4[keep_N], clone=False)
    keep = keep_N.numpy()
    results.update({key: results[key][keep] for key in ONE_AN_INSTANCE if key in results})
    if masks is not None:
        results["gt_masks"] = masks[keep]


def _carry_polygons(masks: PolygonMasks, operations_1K: Tensor, values_1K: Tensor) -> tuple[PolygonMasks, Tensor, Tensor]:
    """The polygons that are left, the boxes [N,4] around them (0 if none is left), and bool [N]: whether any is left."""
    parts = [torch.from_numpy(part.reshape(-1, 2)).double() for polygons in masks for part in polygons]
    most = max(map(len, parts))
    padded_MV2 = torch.stack([torch.cat([part, part[:1].expand(most - len(part), -1)]) for part in parts])
    moved_MV2 = geometry.transform_polygons(padded_MV2, operations_1K, values_1K, masks.width, masks.height)
    moved = iter(map(_corners, moved_MV2.numpy()))
    left, extents, whole = [], [], []
    for polygons in masks:
        had_one = any(len(_corners(part.reshape(-1, 2))) >= 3 for part in polygons)
        here = [part for part in (next(moved) for _ in polygons) if len(part) >= 3]
        whole.append(bool(here) or not had_one)
        corners = np.concatenate(here or [NO_POLYGON.reshape(-1, 2)])
        extents.append(np.concatenate([corners.min(0), corners.max(0)]))
        left.append([part.reshape(-1) for part in here] or [NO_POLYGON])
    return PolygonMasks(left, masks.height, masks.width), torch.from_numpy(np.stack(extents)), torch.tensor(whole)


def _corners(polygon_V2: np.ndarray) -> np.ndarray:
    """The polygon without vertices that repeat the one before."""
    return polygon_V2[(polygon_V2 != np.roll(polygon_V2, 1, 0)).any(1)]


def _record_homography(results: dict[str, Any], operations_1K: Tensor, values_1K: Tensor) -> None:
    """mmdet's record of where the pipeline took a point, float32 [3,3]; its two-view training reads it."""
    height, width = results["img"].shape[:2]
    before = results.get("homography_matrix")
    total = np.eye(3) if before is None else before.astype(np.float64)
    for operations, values in zip(operations_1K.unbind(1), values_1K.unbind(1), strict=True):
        matrix = geometry.forward_matrices(operations, values, width, height)[0].numpy()
        total = np.concatenate([matrix, [[0, 0, 1]]]) @ total
    results["homography_matrix"] = total.astype(np.float32)
