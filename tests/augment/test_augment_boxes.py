"""Boxes and masks against rendering: an instance drawn as a mask, moved as an image is, and measured."""

import pytest
import torch

from dada_det.augment import OPERATION_NAMES, OPERATIONS, Draws, apply_draws, apply_operation
from dada_det.augment.boxes import (
    forward_matrices,
    geometry_of,
    mask_extents,
    polygon_extents,
    transform_boxes,
    transform_instances,
    transform_masks,
    transform_polygons,
)
from dada_det.augment.operations import INDEX, RANGES, matrix_of, value_of

GEOMETRY = [name for name, spec in OPERATIONS.items() if spec.kind == "affine"]
PAIRS = [(first, second) for first in GEOMETRY for second in GEOMETRY if INDEX[first] < INDEX[second]]
WIDTH, HEIGHT = 97, 83
N = 300


def random_boxes(generator, count=N):
    """Boxes of whole pixels, at least one pixel wide and high, many of them at the border."""
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    corners = corners.round()
    return torch.cat([corners[:, 0], corners[:, 1] + 1], 1)


def render(boxes, width=WIDTH, height=HEIGHT):
    x1, y1, x2, y2 = boxes.T[..., None]
    columns, rows = torch.arange(width), torch.arange(height)
    return ((rows >= y1) & (rows < y2))[:, :, None] & ((columns >= x1) & (columns < x2))[:, None]


def operations_and_values(names, generator, ranges="strength", count=N):
    """An operation of each name in each slot, with magnitudes and signs of its own for every instance."""
    operations = torch.tensor([INDEX[name] for name in names]).expand(count, -1)
    magnitudes = torch.rand(count, len(names), generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (count, len(names)), generator=generator) * 2.0 - 1
    return operations, value_of(operations, magnitudes, signs.double(), ranges), magnitudes, signs


def moved_as_an_image(masks, names, magnitudes, signs, ranges="strength"):
    images = masks.byte()[:, None].expand(-1, 3, -1, -1) * 255
    for slot, name in enumerate(names):
        images = apply_operation(images, name, magnitudes[:, slot], signs[:, slot], ranges)
    return images[:, 0] > 0


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("name", GEOMETRY)
def test_a_box_is_within_a_pixel_of_its_rendering_and_leaves_with_it(name, ranges, generator):
    boxes = random_boxes(generator)
    operations, values, *drawn = operations_and_values([name], generator, ranges)
    moved, keep = transform_boxes(boxes, operations, values, WIDTH, HEIGHT)
    rendered, visible = mask_extents(moved_as_an_image(render(boxes), [name], *drawn, ranges))
    assert (moved - rendered)[keep & visible].abs().max() < 1
    if name != "Rotate":  # which cuts corners of less than a pixel
        assert torch.equal(keep, visible)
    assert not (visible & ~keep).any()
    assert ((moved[:, 2:] - moved[:, :2]).amax(1)[keep & ~visible] < 1.5).all()
    assert moved.dtype == boxes.dtype


@pytest.mark.parametrize("names", PAIRS)
def test_after_two_operations_too_but_for_slivers(names, generator):
    boxes = random_boxes(generator)
    operations, values, *drawn = operations_and_values(names, generator)
    moved, keep = transform_boxes(boxes, operations, values, WIDTH, HEIGHT)
    rendered, visible = mask_extents(moved_as_an_image(render(boxes), names, *drawn))
    both = keep & visible
    off = (moved - rendered).abs().amax(1)
    # Each operation rounds to whole pixels, so what is a few pixels thin may be off by more.
    broad = (rendered[:, 2:] - rendered[:, :2]).amin(1) >= 8
    assert (both & broad).sum() > N / 2
    assert off[both & broad].max() < 3
    assert (off[both] < 1).double().mean() > 0.95
    assert (keep != visible).double().mean() < 0.01


def test_boxes_are_dropped_at_all(generator):
    boxes = random_boxes(generator)
    operations, values, *_ = operations_and_values(["TranslateX", "TranslateY"], generator)
    _, keep = transform_boxes(boxes, operations, values, WIDTH, HEIGHT)
    assert 0.03 < (~keep).double().mean() < 0.5


def test_what_has_left_in_the_first_slot_does_not_come_back_in_the_second(generator):
    width, height, boxes = 200, 40, torch.tensor([[0.0, 10, 20, 30], [100, 10, 120, 30]])
    operations = torch.tensor([[INDEX["TranslateX"], INDEX["Rotate"]], [INDEX["TranslateX"], INDEX["TranslateX"]]])
    values = torch.tensor([[0.15, -5.0], [0.15, -0.3]], dtype=torch.float64)
    for row in range(2):  # the image's corner, where what is lost might be put, moves into the image
        moved, keep = transform_boxes(boxes, operations[row:row + 1], values[row:row + 1], width, height)
        assert keep.tolist() == [False, True]
        assert moved.isfinite().all()
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(1, (4, 2))
        left = transform_polygons(corners, operations[row:row + 1], values[row:row + 1], width, height)
        assert (left[0] == 0).all()
        assert (left[1] != 0).any()


@pytest.mark.parametrize(("left", "stays"), [(0.51, True), (0.49, False)])
@pytest.mark.parametrize(("name", "side"), [("TranslateX", WIDTH), ("TranslateY", HEIGHT)])
def test_half_a_pixel_at_the_border_is_the_limit(left, stays, name, side):
    value = torch.tensor([[(10 - left) / side]], dtype=torch.float64)
    operation = torch.tensor([[INDEX[name]]])
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    _, keep = transform_boxes(box, operation, value, WIDTH, HEIGHT)
    assert keep.tolist() == [stays]
    assert transform_masks(render(box), operation, value).any() == stays


@pytest.mark.parametrize(("name", "pixels"), [("TranslateX", (-17, 0)), ("TranslateY", (0, 12))])
def test_a_translation_by_whole_pixels_is_exact(name, pixels, generator):
    boxes = random_boxes(generator)
    operations = torch.full((1, 1), INDEX[name])
    value = torch.tensor([[-pixels[0] / WIDTH - pixels[1] / HEIGHT]], dtype=torch.float64)
    moved, keep = transform_boxes(boxes, operations, value, WIDTH, HEIGHT)
    expected = boxes + torch.tensor(pixels * 2)
    expected = expected.clamp(min=0).minimum(torch.tensor([WIDTH, HEIGHT] * 2))
    inside = (expected[:, 2:] > expected[:, :2]).all(1)
    assert torch.equal(keep, inside)
    torch.testing.assert_close(moved[keep], expected[keep], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_magnitude_0_and_whatever_is_no_geometry_leave_everything(name, generator):
    boxes = random_boxes(generator)
    magnitude = 0.0 if name in GEOMETRY else 0.8
    operations = torch.tensor([[INDEX[name], -1]])
    values = value_of(operations, torch.tensor(magnitude).double(), 1.0, "strength")
    moved, keep = transform_boxes(boxes, operations, values, WIDTH, HEIGHT)
    assert torch.equal(moved, boxes)
    assert keep.all()
    masks = render(boxes[:20])
    assert torch.equal(transform_masks(masks, operations, values), masks)


def test_a_box_that_stays_inside_is_mmdet_s_projection_and_never_wider_at_the_border(generator):
    boxes = random_boxes(generator)
    operations, values, *_ = operations_and_values(["Rotate"], generator)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].unflatten(1, (4, 2)).double()
    matrices = forward_matrices(operations[:, 0], values[:, 0], WIDTH, HEIGHT)
    projected = polygon_extents(torch.einsum("nij,nvj->nvi", matrices[..., :2], corners) + matrices[:, None, :, 2])
    low, high = torch.zeros(4), torch.tensor([WIDTH, HEIGHT] * 2)
    clipped = projected.clamp(low.double(), high.double())
    moved, keep = transform_boxes(boxes, operations, values, WIDTH, HEIGHT)
    inside = ((projected > 0.5) & (projected < high - 0.5)).all(1)
    assert inside.sum() > 20
    torch.testing.assert_close(moved[inside], clipped[inside].float(), rtol=0, atol=1e-4)
    assert (moved >= clipped - 1e-4)[keep][:, :2].all()
    assert (moved <= clipped + 1e-4)[keep][:, 2:].all()
    assert ((moved - clipped).abs().amax(1) > 1)[keep].sum() >= 3  # and tighter for some of them


def test_forward_matrices_undo_matrix_of(generator):
    operations, values, *_ = operations_and_values(["ShearY"], generator)
    operations = torch.randint(0, 15, (N,), generator=generator)
    matrices = forward_matrices(operations, values[:, 0], WIDTH, HEIGHT)
    points = torch.rand(N, 2, generator=generator, dtype=torch.float64) * 80
    x, y = (torch.einsum("nij,nj->ni", matrices, torch.cat([points, torch.ones(N, 1)], 1))).T
    a, b, c, d, e, f = matrix_of(operations, values[:, 0], WIDTH, HEIGHT, torch.cos, torch.sin)
    torch.testing.assert_close(torch.stack([a * x + b * y + c, d * x + e * y + f], 1), points)


@pytest.mark.parametrize("names", [*((name,) for name in GEOMETRY), *PAIRS, ("Rotate", "Cutout"), ("Invert", "ShearX")])
def test_masks_move_as_the_image_does_pixel_by_pixel(names, generator):
    masks = random_polygons(24, generator)[1]
    operations, values, magnitudes, signs = operations_and_values(names, generator, count=24)
    images = masks.byte()[:, None].expand(-1, 3, -1, -1) * 255
    draws = Draws(operations, torch.tensor([[OPERATIONS[name].kind == "affine" for name in names]]).expand(24, -1),
                  magnitudes, signs, torch.full((24, len(names), 2), 0.5))
    expected = apply_draws(images, draws, "strength")[:, 0] > 0
    assert torch.equal(transform_masks(masks, operations, values), expected)
    numbers = transform_masks(masks.byte() * 7, operations, values, fill=9)
    assert torch.equal(numbers == 7, expected)
    outside = ~transform_masks(torch.ones_like(masks), operations, values)
    assert torch.equal(numbers == 9, outside)


def test_one_row_of_operations_serves_all_instances_of_an_image(generator):
    boxes = random_boxes(generator, 12)
    masks = render(boxes)
    operations, values, *_ = operations_and_values(["ShearX", "Rotate"], generator, count=1)
    for transform, instances in ((transform_boxes, (boxes,)), (transform_masks, (masks,))):
        size = (WIDTH, HEIGHT) if transform is transform_boxes else ()
        together = transform(*instances, operations, values, *size)
        apart = transform(*instances, operations.expand(12, -1), values.expand(12, -1), *size)
        torch.testing.assert_close(together, apart, rtol=0, atol=0)


def test_a_batch_of_images_moves_the_instances_of_each_with_it(generator):
    images, image_of_N = 5, torch.randint(0, 5, (40,), generator=generator)
    boxes = random_boxes(generator, 40)
    operations, values, magnitudes, signs = operations_and_values(["TranslateY", "Rotate"], generator, count=images)
    draws = Draws(operations, torch.rand(images, 2, generator=generator) < 0.6, magnitudes, signs,
                  torch.full((images, 2, 2), 0.5))
    operations_BK, values_BK = geometry_of(draws, "strength")
    assert torch.equal(operations_BK >= 0, draws.active_BK)
    assert torch.equal(values_BK, values)
    moved, keep = transform_boxes(boxes, operations_BK[image_of_N], values_BK[image_of_N], WIDTH, HEIGHT)
    for image in range(images):
        mine = image_of_N == image
        row = slice(image, image + 1)
        expected, expected_keep = transform_boxes(boxes[mine], operations_BK[row], values_BK[row], WIDTH, HEIGHT)
        assert torch.equal(moved[mine], expected)
        assert torch.equal(keep[mine], expected_keep)


def random_polygons(count, generator, vertices=7):
    """Convex polygons [N,V,2], points on ellipses in order, and their masks [N,H,W] by the side of every edge."""
    angles = (torch.rand(count, vertices, generator=generator) * 6.28).sort(1).values
    radii = 6 + 30 * torch.rand(count, 1, 2, generator=generator)
    centre = torch.rand(count, 1, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    polygons = centre + radii * torch.stack([angles.cos(), angles.sin()], 2)
    size = torch.tensor([WIDTH, HEIGHT], dtype=polygons.dtype)
    return polygons.clamp(torch.zeros(2), size).double(), inside_of(polygons.clamp(torch.zeros(2), size).double())


def inside_of(polygons):
    """Which pixel centres lie inside polygons [N,V,2] of any shape: an odd number of edges crossed to the right."""
    x, y = (torch.arange(side) + 0.5 for side in (WIDTH, HEIGHT))
    start, end = polygons[:, :, None], polygons.roll(-1, 1)[:, :, None]
    spans = (start[..., 1] > y) != (end[..., 1] > y)  # [N,V,H]
    share = (y - start[..., 1]) / torch.where(spans, end[..., 1] - start[..., 1], 1)
    crossing = start[..., 0] + share * (end[..., 0] - start[..., 0])
    return ((crossing[..., None] > x) & spans[..., None]).sum(1) % 2 == 1


@pytest.mark.parametrize("names", [("ShearX",), ("TranslateX",), ("Rotate",), ("ShearY", "Rotate")])
def test_polygons_of_any_shape_move_as_their_masks_do(names, generator):
    polygons, _ = random_polygons(60, generator, vertices=9)
    polygons = torch.where(torch.arange(9)[:, None] % 3 == 0, (polygons + polygons.mean(1, keepdim=True)) / 2, polygons)
    masks = inside_of(polygons)  # stars now
    operations, values, *_ = operations_and_values(names, generator, count=60)
    drawn = inside_of(transform_polygons(polygons, operations, values, WIDTH, HEIGHT))
    moved = transform_masks(masks, operations, values)
    perimeter = (polygons - polygons.roll(1, 1)).norm(dim=2).sum(1)
    wrong = (drawn != moved).flatten(1).sum(1)
    assert (wrong <= 0.5 * len(names) * perimeter + 4).all()  # half a pixel along the edge
    assert wrong.sum() < 0.35 * perimeter.sum() * len(names)
    assert moved.sum() > 5000


def test_a_comb_keeps_all_its_teeth_when_their_tips_are_cut():
    teeth = [point for tooth in range(6) for point in ([2.0, 15 + 10 * tooth], [20.0, 20 + 10 * tooth])]
    comb = torch.tensor([[[40, 10], [20, 10], *teeth, [40, 70]]]).double()
    operation, value = torch.tensor([[INDEX["TranslateX"]]]), torch.tensor([[8 / WIDTH]], dtype=torch.float64)
    moved = inside_of(transform_polygons(comb, operation, value, WIDTH, HEIGHT))
    assert torch.equal(moved, transform_masks(inside_of(comb), operation, value))
    assert moved[0, :, 0].sum() == 6 * 4


def test_an_instance_goes_with_its_mask_and_its_box_may_come_from_it(generator):
    masks = random_polygons(80, generator)[1]
    extents, _ = mask_extents(masks)
    operations, values, *_ = operations_and_values(["TranslateX", "Rotate"], generator, count=80)
    loose, moved, keep = transform_instances(extents, masks, operations, values, masks.shape[1:], tight=False)
    tight, _, keep_too = transform_instances(extents, masks, operations, values, masks.shape[1:], tight=True)
    rendered, visible = mask_extents(moved)
    had_mask = masks.flatten(1).any(1)
    assert torch.equal(keep, keep_too)
    assert torch.equal(keep[had_mask], visible[had_mask])
    assert 2 < (~keep).sum() < 60
    assert torch.equal(tight[visible], rendered[visible])
    assert (loose[visible][:, :2] <= rendered[visible][:, :2] + 2).all()  # the box holds its object, to the rounding
    assert (loose[visible][:, 2:] >= rendered[visible][:, 2:] - 2).all()


def test_an_instance_without_a_mask_goes_by_its_box():
    boxes = torch.tensor([[40.0, 40, 60, 60], [0, 0, 8, 8]])
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    operation, value = torch.tensor([[INDEX["TranslateX"]]]), torch.tensor([[10 / WIDTH]], dtype=torch.float64)
    moved, _, keep = transform_instances(boxes, masks, operation, value, masks.shape[1:], tight=True)
    assert keep.tolist() == [True, False]
    torch.testing.assert_close(moved[0], torch.tensor([30.0, 40, 50, 60]))


@pytest.mark.parametrize("names", [("Rotate",), ("ShearX", "TranslateX")])
def test_no_instances_and_images_one_pixel_wide(names, generator):
    operations, values, *_ = operations_and_values(names, generator, count=1)
    moved, keep = transform_boxes(torch.zeros(0, 4), operations, values, WIDTH, HEIGHT)
    assert moved.shape == (0, 4)
    assert keep.shape == (0,)
    assert transform_masks(torch.zeros(0, 5, 4, dtype=torch.bool), operations, values).shape == (0, 5, 4)
    boxes, masks, keep = transform_instances(torch.zeros(0, 4), torch.zeros(0, 5, 4), operations, values, (5, 4), tight=True)
    assert (len(boxes), len(masks), len(keep)) == (0, 0, 0)
    thin = torch.tensor([[0.0, 0, 1, 9]])
    moved, _ = transform_boxes(thin, torch.tensor([[INDEX["TranslateY"]]]), torch.tensor([[1 / 9]]).double(), 1, 9)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0, 1, 8]]))
