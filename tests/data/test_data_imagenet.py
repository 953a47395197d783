"""Decoding: every image mode, broken files, random crops that depend on (seed, epoch, index) alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dada_det.data.decode import load_image
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import ImageFolder, check_broken, decodable, decode, random_crop
from dada_det.data.random import generator_for
from dada_det.errors import UserError
from tests.messages import assert_names, refused


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def fill(root: Path, classes: int = 2, per_class: int = 4) -> None:
    for label in range(classes):
        for number in range(per_class):
            save(root / f"c{label}" / f"{number}.png", picture(10 * label + number))


def close(image: Image.Image, expected: Image.Image, within: float) -> bool:
    difference = np.asarray(image, np.float32) - np.asarray(expected, np.float32)
    return image.size == expected.size and float(np.abs(difference).mean()) < within


@pytest.mark.parametrize("suffix, mode", [(".JPEG", "L"), (".jpg", "CMYK"), (".png", "RGBA"), (".png", "LA"),
                                          (".png", "1"), (".webp", "RGB"), (".bmp", "RGB"), (".jpg", "RGB")])
def test_modes_become_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    source = picture()
    expected = source.convert(mode).convert("RGB")
    path = save(tmp_path / f"image{suffix}", source.convert(mode), quality=95)
    image = load_image(path)
    assert image.mode == "RGB" and close(image, expected, within=4)


def test_palettes(tmp_path: Path) -> None:
    indexed = picture().quantize(64)
    plain = load_image(save(tmp_path / "plain.png", indexed))
    transparent = load_image(save(tmp_path / "transparent.png", indexed, transparency=bytes(range(64))))
    assert close(plain, indexed.convert("RGB"), 1e-6) and close(transparent, indexed.convert("RGB"), 1e-6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = load_image(save(tmp_path / "deep.png", Image.fromarray(values)))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], (values >> 8).astype(np.uint8))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to stand upright
    path = save(tmp_path / "turned.jpg", picture(), exif=exif, quality=95)
    assert close(load_image(path), picture().transpose(Image.Transpose.ROTATE_270), within=4)


def test_draft_keeps_both_sides_large_enough(tmp_path: Path) -> None:
    path = save(tmp_path / "large.jpg", picture(width=800, height=300))
    assert load_image(path, at_least=64).size == (200, 75)
    assert load_image(path).size == (800, 300)


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    picture(width=200, height=200).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", jpeg_bytes()[:len(jpeg_bytes()) // 2],
                                     b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"BM" + b"\0" * 60])
def test_broken_files_raise_oserror(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(OSError):
        load_image(tmp_path / "broken.jpg")


def test_decode_does_not_depend_on_threads(tmp_path: Path) -> None:
    fill(tmp_path)
    images = scan_folder(tmp_path)
    one, broken = decode(images, 16, workers=1)
    assert one.shape == (8, 3, 16, 16) and one.dtype == torch.uint8 and broken == []
    assert torch.equal(decode(images, 16, workers=4)[0], one)
    assert not torch.equal(one[0], one[1])


def test_decode_takes_the_centre(tmp_path: Path) -> None:
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = (10, 200, 30)
    save(tmp_path / "a" / "1.png", Image.fromarray(stripes))
    pixels, _ = decode(scan_folder(tmp_path), 20, workers=1)
    assert (pixels[0].permute(1, 2, 0) == torch.tensor([10, 200, 30])).all()


def test_one_broken_image_is_replaced_by_its_class_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "c0" / "3.png").write_bytes(jpeg_bytes()[:500])
    pixels, broken = decode(scan_folder(tmp_path), 16, workers=2)
    assert broken == ["c0/3.png"]
    assert torch.equal(pixels[3], pixels[0])  # the next of its class, around the end


def test_a_broken_image_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    whole = scan_folder(tmp_path)
    images, memory = decodable(whole, 14, "search")
    assert images == whole and len(memory) == 8 and capsys.readouterr().out == ""
    (tmp_path / "c0" / "3.png").write_bytes(jpeg_bytes()[:500])
    images, fewer = decodable(scan_folder(tmp_path), 14, "search")
    rows = [0, 1, 2, 4, 5, 6, 7]
    assert images.files == tuple(whole.files[row] for row in rows)
    assert torch.equal(fewer.images_NCHW, memory.images_NCHW[rows]) and torch.equal(fewer.labels_N, memory.labels_N[rows])
    assert_names(capsys.readouterr().out, "1 of 8", tmp_path, "left out", "c0/3.png")


def test_decode_stops_at_many_broken_images(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in ("c0/1.png", "c1/2.png"):
        (tmp_path / name).write_bytes(b"")
    with refused("2 of 8", tmp_path, "1 %", "c0/1.png", "c1/2.png", "repair"):
        decode(scan_folder(tmp_path), 16, workers=2)


def test_decode_stops_where_a_whole_class_is_broken(tmp_path: Path) -> None:
    fill(tmp_path, per_class=1)
    (tmp_path / "c1" / "0.png").write_bytes(b"")
    with refused("'c1'", tmp_path, "c1/0.png", "repair"):
        decode(scan_folder(tmp_path), 16, workers=1)


def test_one_percent_is_allowed() -> None:
    check_broken(["a"], 2, "root")
    check_broken(["a", "b"], 200, "root")
    with refused("3 of 299", "root", "1 %", "a, b, c", "repair"):
        check_broken(["a", "b", "c"], 299, "root")
    with pytest.raises(UserError, match=r"a, a, a, \.\.; repair"):
        check_broken(["a"] * 9, 10, "root")


def test_folder_items(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = ImageFolder(scan_folder(tmp_path), 16, train=False)
    item = folder[5]
    assert len(folder) == 8 and item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.uint8
    assert (item["label"], item["index"], item["broken"]) == (1, 5, "")
    assert torch.equal(folder[5]["image"], item["image"])


def test_training_randomness_follows_from_seed_epoch_index(tmp_path: Path) -> None:
    fill(tmp_path)
    images = scan_folder(tmp_path)

    def image(seed: int, epoch: int, index: int) -> torch.Tensor:
        folder = ImageFolder(images, 16, train=True, seed=seed)
        folder.set_epoch(epoch)
        return folder[index]["image"]

    assert torch.equal(image(0, 1, 2), image(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2)):
        assert not torch.equal(image(0, 1, 2), image(*other))


def test_transform_sees_the_crop_and_the_generator(tmp_path: Path) -> None:
    fill(tmp_path)

    def transform(image: Image.Image, generator: torch.Generator) -> Image.Image:
        assert image.size == (16, 16) and image.mode == "RGB"
        return Image.new("RGB", image.size, (int(torch.randint(256, (), generator=generator)), 0, 0))

    images = scan_folder(tmp_path)
    first, second = (ImageFolder(images, 16, train=True, transform=transform)[0]["image"] for _ in range(2))
    assert torch.equal(first, second) and first[1:].eq(0).all()
    assert not ImageFolder(images, 16, train=False, transform=transform)[0]["image"][1:].eq(0).all()


def test_folder_replaces_and_names_broken_images(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "c1" / "3.png").write_bytes(b"broken")
    folder = ImageFolder(scan_folder(tmp_path), 16, train=False)
    item = folder[7]
    assert (item["label"], item["index"], item["broken"]) == (1, 7, "c1/3.png")
    assert torch.equal(item["image"], folder[4]["image"])
    for number in range(3):
        (tmp_path / "c1" / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"no image of the class 'c1' in .* decodes"):
        folder[4]


def test_persistent_workers_see_the_epoch(tmp_path: Path) -> None:
    fill(tmp_path)
    folder = ImageFolder(scan_folder(tmp_path), 16, train=True)
    loader = DataLoader(folder, batch_size=8, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        folder.set_epoch(epoch)
        batch = next(iter(loader))
        epochs.append(batch["image"])
        assert torch.equal(batch["image"][3], folder[3]["image"]) and batch["broken"] == [""] * 8
    assert not torch.equal(*epochs)


def test_random_crops_stay_inside_and_vary() -> None:
    shares = []
    for index in range(300):
        left, top, right, bottom = random_crop(100, 60, generator_for(0, index))
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 60
        assert 0.7 < (right - left) / (bottom - top) < 1.4
        shares.append((right - left) * (bottom - top) / 6000)
    assert min(shares) < 0.15 and max(shares) > 0.7
    assert random_crop(500, 3, generator_for(0)) == (248, 0, 252, 3)
    assert random_crop(1, 400, generator_for(0)) == (0, 199, 1, 200)


def test_real_photographs(shared: Path) -> None:
    images = scan_folder(shared / "data" / "imagenette-mini" / "val").select(range(0, 200, 10))
    pixels, broken = decode(images, 64, workers=2)
    assert broken == [] and pixels.shape == (20, 3, 64, 64)
    item = ImageFolder(images, 64, train=False)[0]["image"]
    exact = load_image(images.path(0)).resize((64, 64), Image.Resampling.BILINEAR)
    drafted = pixels[0].permute(1, 2, 0).float() - torch.from_numpy(np.asarray(exact, np.float32))
    assert drafted.abs().mean() < 4 and item.float().std() > 10
