"""The demo's pictures: outlines filled with textures on textured backgrounds, all from numbers.

A kind of object has a shape family, a texture family and a hue; each family has three variants, so that a category
looks different from one object to the next. Suffixes: H height, W width in pixels, 3 RGB, P points, 2 = (x, y).
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Random = np.random.Generator
HUES = 8  # bands around the colour circle
HUE_JITTER = 0.03
OVERSAMPLING = 4


@dataclass(frozen=True)
class Kind:
    """What an object looks like: names of a shape family and a texture family, and a hue in 0..HUES-1."""

    shape: str
    texture: str
    hue: int


def _polar(radii: np.ndarray) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _round(variant: int, random: Random) -> np.ndarray:
    circle_P2 = _polar(np.ones(40))
    if variant == 0:
        return circle_P2
    if variant == 1:
        return circle_P2 * [1, random.uniform(0.6, 0.8)]
    return circle_P2 * np.stack([np.ones(40), 0.75 + 0.25 * circle_P2[:, 0]], axis=1)  # an egg


def _angular(variant: int, random: Random) -> np.ndarray:
    if variant == 0:
        return _polar(np.ones(3))
    if variant == 1:
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * [1, random.uniform(0.6, 1)]
    top = random.uniform(0.3, 0.6)
    return np.array([(-top, -0.8), (top, -0.8), (1, 0.8), (-1, 0.8)])


def _star(variant: int, random: Random) -> np.ndarray:
    points = (4, 5, 7)[variant]
    inner = random.uniform(0.4, 0.5)
    return _polar(np.where(np.arange(2 * points) % 2 == 0, 1.0, inner))


def _cross(variant: int, random: Random) -> np.ndarray:
    a = random.uniform(0.25, 0.35)
    if variant == 0:
        corners = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a),
                   (-a, -a)]
    elif variant == 1:  # a T
        corners = [(-1, -1), (1, -1), (1, 2 * a - 1), (a, 2 * a - 1), (a, 1), (-a, 1), (-a, 2 * a - 1), (-1, 2 * a - 1)]
    else:  # an L
        corners = [(-1, -1), (2 * a - 1, -1), (2 * a - 1, 1 - 2 * a), (1, 1 - 2 * a), (1, 1), (-1, 1)]
    return np.array(corners)


def _flower(variant: int, random: Random) -> np.ndarray:
    petals = (3, 5, 8)[variant]
    wave = np.cos(petals * np.linspace(0, 2 * math.pi, 64, endpoint=False))
    return _polar(0.78 + (0.2 if variant == 2 else random.uniform(0.22, 0.3)) * wave)


def _stripes(variant: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if variant == 0:
        return np.sin(9 * x)
    if variant == 1:
        return np.sin(9 * x + 2 * np.sin(4 * y))
    return np.sin(11 * np.hypot(x, y))


def _checks(variant: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if variant == 0:
        return np.sin(6 * x) * np.sin(6 * y) * 3
    if variant == 1:
        return np.maximum(np.sin(7 * x), np.sin(7 * y)) * 3 - 2  # a grid of lines
    return np.sin(5 * (x + y)) * np.sin(10 * (x - y)) * 3


def _dots(variant: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    step = (0.6, 0.45, 0.6)[variant]
    row = np.floor(y / step)
    shift = row % 2 * step / 2 if variant == 2 else 0
    u, v = (x + shift) % step / step - 0.5, y % step / step - 0.5
    return (0.3 - np.hypot(u, v)) * 12


SHAPES: dict[str, Callable[[int, Random], np.ndarray]] = {
    "round": _round, "angular": _angular, "star": _star, "cross": _cross, "flower": _flower}
TEXTURES: dict[str, Callable[[int, np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": _stripes, "checks": _checks, "dots": _dots}
VARIANTS = 3
KINDS = tuple(Kind(shape, texture, hue) for shape in SHAPES for texture in TEXTURES for hue in range(HUES))


def outline(kind: Kind, centre: tuple[float, float], diameter: float, random: Random) -> np.ndarray:
    """The outline of one object, turned at random, as points [P,2] in pixels; its longer side is `diameter` long."""
    points_P2 = SHAPES[kind.shape](int(random.integers(VARIANTS)), random)
    angle = random.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points_P2 = points_P2 @ turn.T
    low, high = points_P2.min(axis=0), points_P2.max(axis=0)
    return (points_P2 - (low + high) / 2) * (diameter / (high - low).max()) + np.array(centre)


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB [3] in 0..255 of a hue in turns (any number), a saturation and a value in 0..1."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


def background(width: int, height: int, random: Random) -> np.ndarray:
    """A pale or dark textured ground, float [H,W,3] in 0..255: clouds of two sizes and faint stripes between two greys
    with a tint."""
    clouds = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.7), (12, 0.3)):
        coarse = Image.fromarray(random.random((cells, cells), np.float32))
        clouds += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:height, :width]
    angle, frequency = random.uniform(0, math.pi), random.uniform(0.1, 0.6)
    clouds += random.uniform(0, 0.25) * np.sin(frequency * (x * math.cos(angle) + y * math.sin(angle)))
    clouds += random.normal(0, 0.05, clouds.shape)
    first, second = (colour(random.random(), random.uniform(0, 0.25), random.uniform(0.15, 0.95)) for _ in range(2))
    return first + clouds.clip(0, 1)[..., None] * (second - first)


def paint(canvas_HW3: np.ndarray, kind: Kind, points_P2: np.ndarray, random: Random) -> None:
    """Paints one object with a smooth edge into the canvas (float, 0..255), in place."""
    height, width = canvas_HW3.shape[:2]
    left, top = np.maximum(np.floor(points_P2.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(points_P2.max(axis=0)).astype(int) + 1, [width, height])
    alpha = _coverage(points_P2 - [left, top], right - left, bottom - top)
    hue = kind.hue / HUES + random.uniform(-HUE_JITTER, HUE_JITTER)
    light = colour(hue, random.uniform(0.75, 1), random.uniform(0.85, 1))
    dark = colour(hue, random.uniform(0.85, 1), random.uniform(0.3, 0.5))
    centre, radius = points_P2.mean(axis=0), np.ptp(points_P2, axis=0).max() / 2
    y, x = np.mgrid[top:bottom, left:right]
    angle, zoom = random.uniform(0, 2 * math.pi), random.uniform(0.8, 1.2) / radius
    u = ((x - centre[0]) * math.cos(angle) + (y - centre[1]) * math.sin(angle)) * zoom
    v = ((y - centre[1]) * math.cos(angle) - (x - centre[0]) * math.sin(angle)) * zoom
    pattern = TEXTURES[kind.texture](int(random.integers(VARIANTS)), u, v)
    filled = light + (pattern.clip(-1, 1)[..., None] + 1) / 2 * (dark - light)
    region = canvas_HW3[top:bottom, left:right]
    region += alpha[..., None] * (filled - region)


def occlude(canvas_HW3: np.ndarray, random: Random) -> None:
    """Lays a grey bar across the canvas (float, 0..255), in place."""
    height, width = canvas_HW3.shape[:2]
    thickness = random.uniform(0.08, 0.2) * min(width, height)
    bar_P2 = np.array([(-2 * width, 0), (2 * width, 0), (2 * width, thickness), (-2 * width, thickness)])
    angle = random.uniform(0, math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    alpha = _coverage(bar_P2 @ turn.T + random.uniform(0.2, 0.8, 2) * [width, height], width, height)
    canvas_HW3 += alpha[..., None] * (colour(0, 0, random.uniform(0.2, 0.8)) - canvas_HW3)


def _coverage(points_P2: np.ndarray, width: int, height: int) -> np.ndarray:
    """How much of each pixel the outline covers, float [H,W] in 0..1."""
    big = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    ImageDraw.Draw(big).polygon([(x, y) for x, y in points_P2 * OVERSAMPLING], fill=255)
    return np.asarray(big.reduce(OVERSAMPLING), np.float32) / 255


def to_image(canvas_HW3: np.ndarray) -> Image.Image:
    return Image.fromarray(canvas_HW3.clip(0, 255).round().astype(np.uint8))
