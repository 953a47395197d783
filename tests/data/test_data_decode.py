"""A part of an image: the same pixels as of the whole one, at a scale of JPEG's that suffices, upright, and no more."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dada_det.data.decode import SCALES, load_image, load_part


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95, **options)
    return buffer.getvalue()


def difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def test_a_part_under_twice_the_size_has_the_pixels_of_the_whole_image(tmp_path: Path) -> None:
    data, box = encoded(smooth(203, 101)), (11, 3, 74, 66)
    (tmp_path / "image.jpg").write_bytes(data)
    expected = load_image(data).resize((32, 32), Image.Resampling.BILINEAR, box=box)
    for source in (data, tmp_path / "image.jpg", str(tmp_path / "image.jpg")):
        assert difference(load_part(source, 32, lambda width, height: box), expected) == 0


@pytest.mark.parametrize("side, scale", [(63, 1), (64, 2), (127, 2), (128, 4), (256, 8), (640, 8)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_will_do(side: int, scale: int,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scale, at the crop that just allows it, with odd sizes; the part stays where it was."""
    data, sizes, seen = encoded(smooth(901, 701)), [], []
    plain = Image.Image.resize

    def resize(self: Image.Image, *arguments: object, **options: object) -> Image.Image:
        sizes.append(self.size)
        return plain(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", resize)

    def window(width: int, height: int) -> tuple[int, int, int, int]:
        seen.append((width, height))
        return 101, 33, 101 + side + 9, 33 + side

    part = load_part(data, 32, window)
    assert seen == [(901, 701)] and sizes == [(-(-901 // scale), -(-701 // scale))] and scale in (1, *SCALES)
    whole = plain(load_image(data), (32, 32), Image.Resampling.BILINEAR, box=window(0, 0))
    assert difference(part, whole) < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_window_is_that_of_the_upright_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(400, 240), exif=exif)
    upright = load_image(data)
    assert upright.size == ((240, 400) if orientation > 4 else (400, 240))
    seen = []

    def window(width: int, height: int) -> tuple[int, int, int, int]:
        seen.append((width, height))
        return 20, 40, 180, 200

    part = load_part(data, 64, window)  # at half the size
    assert seen == [upright.size]
    assert difference(part, upright.resize((64, 64), Image.Resampling.BILINEAR, box=(20, 40, 180, 200))) < 1.5


@pytest.mark.parametrize("kind, mode", [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGB"),
                                        ("TIFF", "RGB")])
def test_parts_of_other_modes_and_formats(kind: str, mode: str) -> None:
    data = encoded(smooth(120, 90).convert(mode), kind)
    expected = load_image(data).resize((16, 16), Image.Resampling.BILINEAR, box=(10, 10, 40, 40))
    assert difference(load_part(data, 16, lambda width, height: (10, 10, 40, 40)), expected) == 0


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_rotation_of_other_formats_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, turned = encoded(smooth(120, 90), kind, exif=exif), (90, 120) if orientation == 6 else (120, 90)
    seen = []

    def window(width: int, height: int) -> tuple[int, int, int, int]:
        seen.append((width, height))
        return 0, 0, width, height

    part = load_part(data, 30, window)
    assert seen == [turned]
    assert difference(part, load_image(data).resize((30, 30), Image.Resampling.BILINEAR)) == 0
    method = Image.Transpose.ROTATE_270 if orientation == 6 else Image.Transpose.ROTATE_180
    assert difference(load_image(data), smooth(120, 90).transpose(method)) == 0


def test_damage_is_an_oserror_and_a_mistake_of_the_caller_is_not() -> None:
    data = encoded(smooth(200, 200))
    for broken in (b"", b"no image", data[:len(data) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 40):
        with pytest.raises(OSError):
            load_part(broken, 16, lambda width, height: (0, 0, 100, 100))
    with pytest.raises(ZeroDivisionError):
        load_part(data, 16, lambda width, height: (0, 0, 1 // 0, 0))


@pytest.mark.parametrize(("factor", "kind"), [
    (1, np.float32), (255, np.float32), (65535, np.float32), (1.3, np.float32), (0.001, np.float32),
    (255, np.int32), (4095, np.int32), (70_000, np.int32), (3, np.int32),
    (255, np.uint16), (1023, np.uint16), (4095, np.uint16), (16383, np.uint16), (65535, np.uint16)])
def test_other_than_eight_bits_are_scaled_by_the_range_that_holds_them(factor: float, kind: type) -> None:
    ramp = np.tile(np.linspace(0, 1, 160), (120, 1))
    values = (factor * ramp).astype(kind) if kind == np.float32 else (factor * ramp).round().astype(kind)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    expected = Image.fromarray((values * (255 / factor)).round().astype(np.uint8)).convert("RGB")
    assert difference(load_image(buffer.getvalue()), expected) <= 1


def test_negative_values_are_scaled_by_their_own_range_and_others_refused() -> None:
    ramp = np.tile(np.linspace(-1, 1, 160), (120, 1))
    for values in ((1000 * ramp).astype(np.int32), ramp.astype(np.float32)):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "TIFF")
        pixels = np.asarray(load_image(buffer.getvalue()))
        assert pixels.min() == 0 and pixels.max() == 255 and abs(int(pixels[0, 80, 0]) - 128) <= 2
    for bad in (np.nan, np.inf):
        values = ramp.astype(np.float32)
        values[3, 4] = bad
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "TIFF")
        with pytest.raises(OSError, match="not finite"):
            load_image(buffer.getvalue())
    black = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(black, "PNG")
    assert not np.asarray(load_image(black.getvalue())).any()
