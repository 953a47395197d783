"""Boxes, polygons and masks carried along by the geometric operations, as functions of tensors.

Shape legend: N instances, B images, K slots of a sub-policy, V vertices of a polygon, P = H · W pixels of an image.
Operations are indices into OPERATION_NAMES, values come from `value_of`. Both are [N,K], or [1,K] if all N instances lie in
one image. For a batch of images, index the images' [B,K] with the image of each instance. -1 and every operation that
is no geometry leave an instance where it is, Cutout included: what it hides is still there.

Coordinates are COCO's and mmdet's: pixel (column, row) covers [column, column + 1] x [row, row + 1], and a box is
(x1, y1, x2, y2) with its corners on the edges of pixels. `matrix_of` maps output to input in the same coordinates, so an
instance moves by its inverse.

How a box moves: its four corners move. What leaves the image in a slot is cut off and lost for the next slot. The extent
of what is left is the new box. For a box that stays inside under one operation this is mmdet's `project_` and `clip_`.
For one that is cut, or after two operations, it is tighter than mmdet's, never wider.

When a box is dropped: when no part of it reaches the centre of a pixel on the image's border, so half a pixel of a
straight edge is enough to stay. Then rendering the box shows nothing (but for corners of about a pixel). COCO too
annotates what is visible, however little. If you want more left of a box, filter afterwards.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dada_det.augment.kernels import sampling_lines
from dada_det.augment.operations import OPERATIONS, check_ranges, matrix_of, value_of
from dada_det.augment.transform import Draws

HALF = 0.5  # pixels: how far the centres of the border's pixels are from the border


def geometry_of(draws: Draws, ranges: str) -> tuple[Tensor, Tensor]:
    """What `draws` of B images do to instances: operations long [B,K], -1 where nothing moves, and values float64 [B,K]."""
    values_BK = value_of(draws.operations_BK, draws.magnitudes_BK.double(), draws.signs_BK.double(), check_ranges(ranges))
    moves_BK = draws.active_BK & _is_geometry(draws.operations_BK.device)[draws.operations_BK]
    return torch.where(moves_BK, draws.operations_BK, -1), values_BK


@lru_cache(maxsize=8)
def _is_geometry(device: torch.device) -> Tensor:
    """bool [15], kept on the device so that a batch needs no copy to it."""
    return torch.tensor([spec.kind == "affine" for spec in OPERATIONS.values()], device=device)


def forward_matrices(operations_N: Tensor, values_N: Tensor, width: int, height: int) -> Tensor:
    """The matrices [N,2,3] float64 that take a point (x, y, 1) to where an operation moves it: `matrix_of` inverted."""
    a, b, c, d, e, f = matrix_of(operations_N, values_N, width, height, torch.cos, torch.sin)
    rows = torch.stack([e, -b, b * f - c * e, -d, a, c * d - a * f], -1) / (a * e - b * d)[..., None]
    return rows.unflatten(-1, (2, 3))


def transform_boxes(boxes_N4: Tensor, operations_NK: Tensor, values_NK: Tensor, width: int,
                    height: int) -> tuple[Tensor, Tensor]:
    """Moves boxes through K operations.

    Args:
        boxes_N4: (x1, y1, x2, y2) in pixels, float [N,4].
        operations_NK, values_NK: see the head of this file.
        width, height: of the image, in pixels.

    Returns:
        The boxes [N,4], inside the image and of the dtype of `boxes_N4`, and keep, bool [N]. Where keep is False the box
        means nothing, but is finite.
    """
    corners_NV2 = boxes_N4[:, [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(1, (4, 2))
    left_NV2 = _carry(corners_NV2, operations_NK, values_NK, width, height, convex=True)
    seen_NV2 = _clip(left_NV2, (HALF, HALF, width - HALF, height - HALF), convex=True)
    edges_N4, seen_N4 = polygon_extents(left_NV2), polygon_extents(seen_NV2)
    # A thin wedge along a border counts from where it reaches the centres of pixels; at a border, the border counts.
    at_border_N4 = torch.stack([seen_N4[:, 0] <= HALF, seen_N4[:, 1] <= HALF,
                                seen_N4[:, 2] >= width - HALF, seen_N4[:, 3] >= height - HALF], 1)
    boxes = torch.where(at_border_N4, edges_N4, seen_N4)
    return boxes.nan_to_num(0).to(boxes_N4.dtype), ~seen_N4[:, 0].isnan()


def transform_polygons(polygons_NV2: Tensor, operations_NK: Tensor, values_NK: Tensor, width: int, height: int) -> Tensor:
    """Moves polygons of any shape through K operations and cuts them at the image.

    Args:
        polygons_NV2: (x, y) in pixels, float [N,V,2]. Shorter polygons are padded by repeating their first vertex.
        operations_NK, values_NK: see the head of this file.
        width, height: of the image, in pixels.

    Returns:
        float64 [N,V',2], padded in the same way; all zero where nothing is left.
    """
    return _carry(polygons_NV2, operations_NK, values_NK, width, height, convex=False).nan_to_num(0)


def polygon_extents(polygons_NV2: Tensor) -> Tensor:
    """The boxes [N,4] around polygons [N,V,2]."""
    return torch.cat([polygons_NV2.amin(1), polygons_NV2.amax(1)], 1)


def transform_masks(masks_NHW: Tensor, operations_NK: Tensor, values_NK: Tensor, fill: int = 0) -> Tensor:
    """Moves masks through K operations, sampled pixel by pixel as the image is.

    Args:
        masks_NHW: bool or whole numbers, [N,H,W].
        operations_NK, values_NK: with [1,K] the sampling is computed once; with [N,K] it takes 8 bytes a pixel and instance.
        fill: what comes in from outside the image.

    Returns:
        [N,H,W] of the type of `masks_NHW`.
    """
    height, width = masks_NHW.shape[1:]
    source = torch.arange(height * width + 1, device=masks_NHW.device)[None]  # the last one stands for outside
    for x_NW, x_NH, y_NH, y_NW in zip(*(line.unbind(1) for line in sampling_lines(operations_NK, values_NK, width, height)),
                                      strict=True):
        x = (x_NW[:, None, :] + x_NH[:, :, None]) >> 16
        y = (y_NH[:, :, None] + y_NW[:, None, :]) >> 16
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        reads = (y * width + x).long().masked_fill_(outside, height * width).flatten(1)
        source = F.pad(source.expand(len(reads), -1).gather(1, reads), (0, 1), value=height * width)
    filled = F.pad(masks_NHW.flatten(1), (0, 1), value=fill)
    source = source[:, :-1]
    moved = filled.index_select(1, source[0]) if len(source) == 1 else filled.gather(1, source)
    return moved.view_as(masks_NHW)


def mask_extents(masks_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes float32 [N,4] around the set pixels of masks [N,H,W], and which masks have any, bool [N]."""
    edges, set_NHW = [], masks_NHW != 0
    for set_NS in (set_NHW.any(1), set_NHW.any(2)):  # columns, rows
        edges += [set_NS.byte().argmax(1), set_NS.shape[1] - set_NS.flip(1).byte().argmax(1)]
    boxes_N4 = torch.stack([edges[0], edges[2], edges[1], edges[3]], 1).float()
    return boxes_N4, set_NHW.flatten(1).any(1)


def transform_instances(boxes_N4: Tensor, masks_NHW: Tensor | None, operations_NK: Tensor, values_NK: Tensor,
                        size: tuple[int, int], tight: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Moves the instances of one image through K operations, for ApplyPolicy and for the search on a detector.

    An instance is dropped if no pixel of its mask is left. If its mask was empty before (mmdet's stand-in for a missing
    one) or there are no masks, its box decides.

    Args:
        boxes_N4: (x1, y1, x2, y2) in pixels.
        masks_NHW: None: boxes alone.
        operations_NK, values_NK: see the head of this file.
        size: (height, width) of the image.
        tight: whether boxes are taken from the masks that are left.

    Returns:
        Boxes [N,4], masks [N,H,W] or None, and keep, bool [N].
    """
    height, width = size
    if masks_NHW is None:
        boxes_N4, keep_N = transform_boxes(boxes_N4, operations_NK, values_NK, width, height)
        return boxes_N4, None, keep_N
    moved_NHW = transform_masks(masks_NHW, operations_NK, values_NK)
    projected_N4, box_left_N = transform_boxes(boxes_N4, operations_NK, values_NK, width, height)
    extents_N4, mask_left_N = mask_extents(moved_NHW)
    keep_N = torch.where((masks_NHW != 0).flatten(1).any(1), mask_left_N, box_left_N)
    from_mask_N = mask_left_N if tight else mask_left_N & ~box_left_N
    return torch.where(from_mask_N[:, None], extents_N4.to(boxes_N4.dtype), projected_N4), moved_NHW, keep_N


def _carry(polygons_NV2: Tensor, operations_NK: Tensor, values_NK: Tensor, width: int, height: int,
           convex: bool) -> Tensor:
    points_NV2 = polygons_NV2.double()
    for operations, values in zip(operations_NK.unbind(1), values_NK.unbind(1), strict=True):
        matrices = forward_matrices(operations, values, width, height)
        points_NV2 = points_NV2 @ matrices[..., :2].mT + matrices[..., 2][:, None]
        points_NV2 = _clip(points_NV2, (0, 0, width, height), convex)
    return points_NV2


def _clip(polygons_NV2: Tensor, box: tuple[float, float, float, float], convex: bool) -> Tensor:
    """The parts of polygons inside (x1, y1, x2, y2), by Sutherland and Hodgman's four cuts; NaN where none is."""
    for axis, limit, side in ((0, box[0], -1), (1, box[1], -1), (0, box[2], 1), (1, box[3], 1)):
        polygons_NV2 = _cut(polygons_NV2, axis, limit, side, convex)
    return polygons_NV2


def _cut(polygons_NV2: Tensor, axis: int, limit: float, side: int, convex: bool) -> Tensor:
    """Keeps what lies at or below (side 1), at or above (-1) `limit` along `axis`; the first vertex fills the padding."""
    beyond_NV = side * (polygons_NV2[..., axis] - limit)
    next_NV2, next_beyond_NV = polygons_NV2.roll(-1, 1), beyond_NV.roll(-1, 1)
    inside_NV = beyond_NV <= 0
    crosses_NV = inside_NV != (next_beyond_NV <= 0)
    share_NV = torch.where(crosses_NV, beyond_NV / (beyond_NV - next_beyond_NV), 0)
    crossings_NV2 = polygons_NV2 + share_NV[..., None] * (next_NV2 - polygons_NV2)
    crossings_NV2[..., axis] = limit
    # Each vertex is followed by the crossing on the edge behind it; those that count move to the front, in order.
    points = torch.stack([polygons_NV2, crossings_NV2], 2).flatten(1, 2)
    counts = torch.stack([inside_NV, crosses_NV], 2).flatten(1, 2)
    vertices = polygons_NV2.shape[1]
    most = vertices + (1 if convex else vertices // 2)  # a cut takes at least a vertex for every two crossings
    order = (~counts).byte().argsort(dim=1, stable=True)[:, :most]
    points, counts = points.gather(1, order[..., None].expand(-1, -1, 2)), counts.gather(1, order)
    # Of a polygon that is gone NaN remains, which no later slot can move back into the image.
    first = torch.where(counts[:, :1, None], points[:, :1], torch.nan)
    return torch.where(counts[..., None], points, first)
