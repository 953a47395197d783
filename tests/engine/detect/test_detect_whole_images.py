"""Images that the pipeline does not read, or reads at another size than annotated, are found by every process."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dada_det.data.coco_instances import Picture
from dada_det.engine.detect import whole_images
from dada_det.engine.detect.whole_images import broken_images, demand_whole, leave_out_broken, reader_of
from tests.messages import refused

SIZE = (60, 40)
LOADING = [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}]
TURNED = Image.Exif()
TURNED[0x0112] = 6


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def encoded(kind: str, size: tuple[int, int] = SIZE, **options: object) -> bytes:
    file = io.BytesIO()
    noise(size).save(file, kind, **options)
    return file.getvalue()


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(value ^ 0x5A for value in data[at:at + 30]) + data[at + 30:]


PNG, JPEG = encoded("PNG"), encoded("JPEG")
TABLES = JPEG.index(b"\xff\xc4")  # the first Huffman table
WHOLE = {"png": PNG, "jpeg": JPEG, "jpeg with more behind it": JPEG + bytes(500), "bmp": encoded("BMP"),
         "webp": encoded("WEBP"), "turned jpeg": encoded("JPEG", SIZE[::-1], exif=TURNED)}
BROKEN = {"png damaged inside": damaged(PNG, PNG.index(b"IDAT") + 20), "cut png": PNG[:-30], "cut jpeg": JPEG[:-30],
          "jpeg damaged in its tables": damaged(JPEG, TABLES + 2), "tga": encoded("TGA"), "cut webp": WHOLE["webp"][:-200],
          "text": b"no image", "nothing": b""}


def of_sixteen_bits(most: int, kind: str) -> bytes:
    """An image whose values go up to `most`, stored in 16 bits."""
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, most, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)).save(file, kind)
    return file.getvalue()


def pictures(folder: Path, files: dict[str, bytes], size: tuple[int, int] = SIZE) -> list[Picture]:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [Picture(name, *size, 1, 1) for name in files]


def test_what_opencv_shows_as_black_is_broken_and_what_is_dark_is_not(tmp_path):
    night = io.BytesIO()
    Image.new("RGB", SIZE, (2, 3, 4)).save(night, "PNG")
    lost = {f"{most}.{kind}": of_sixteen_bits(most, kind) for most in (255, 4095) for kind in ("png", "tiff")}
    files = {"deep.png": of_sixteen_bits(65535, "png"), "night.png": night.getvalue(), **lost}
    found = broken_images(pictures(tmp_path, files), tmp_path / "truth.json", tmp_path, reader_of(LOADING))
    assert found == list(lost)


def test_what_opencv_reads_is_whole_and_what_it_does_not_read_is_broken(tmp_path):
    every = pictures(tmp_path, WHOLE | BROKEN)
    (tmp_path / "dangling").symlink_to("/nonexistent/image.png")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    none = ["dangling", "folder", "pipe", "absent", "long" * 100]
    every += [Picture(name, *SIZE, 1, 1) for name in none]
    assert broken_images(every, Path("t.json"), tmp_path, reader_of(LOADING)) == [*BROKEN, *none]


def test_the_config_s_loading_decides(tmp_path):
    every = pictures(tmp_path, {"tga": encoded("TGA")})
    assert broken_images(every, Path("t.json"), tmp_path, reader_of([{**LOADING[0], "imdecode_backend": "pillow"}])) == []
    every = pictures(tmp_path, {"turned": encoded("JPEG", SIZE, exif=TURNED)})
    lying = [{**LOADING[0], "color_type": "color_ignore_orientation"}]
    assert broken_images(every, Path("t.json"), tmp_path, reader_of(lying)) == []
    with refused("60 x 40 px in t.json", re.compile(r"40 x 60 px in \S+ "), "EXIF"):
        broken_images(every, Path("t.json"), tmp_path, reader_of(LOADING))


@pytest.mark.parametrize("size", [(30, 20), (61, 40), (60, 41), (40, 60)])
def test_another_size_is_refused_with_the_first_such_image_and_both_sizes(size, tmp_path):
    every = pictures(tmp_path, {"0.png": PNG, "1.png": encoded("PNG", size), "2.png": encoded("PNG", size)})
    with refused("1.png", "60 x 40 px in t.json", f"{size[0]} x {size[1]} px in"):
        broken_images(every, Path("t.json"), tmp_path, reader_of(LOADING))


def test_processes_share_the_work_and_all_know_the_outcome(tmp_path, monkeypatch):
    """Three processes, one after another: what each would send, then what each makes of all that is sent."""
    files = {f"{number}.png": b"" if number % 3 else PNG for number in range(10)}
    every, read, sent = pictures(tmp_path, files), reader_of(LOADING), []
    monkeypatch.setattr(whole_images, "get_world_size", lambda: 3)
    for gather in (lambda own: sent.append(own) or sent, lambda own: sent):
        for rank in range(3):
            monkeypatch.setattr(whole_images, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(whole_images, "all_gather_object", gather)
            found = broken_images(every, Path("t.json"), tmp_path, read)
    assert len(sent) == 3 and found == [name for name, data in files.items() if not data]
    sent[1] = (sent[1][0], (4, (3, 5)))
    with refused("4.png", "60 x 40 px in t.json", "3 x 5 px"):
        broken_images(every, Path("t.json"), tmp_path, read)


def test_one_broken_image_may_be_left_out_of_training_and_none_of_an_evaluation(tmp_path):
    every, read = pictures(tmp_path, {"0.png": PNG, "1.png": b"", "2.png": PNG}), reader_of(LOADING)
    assert leave_out_broken(every, Path("t.json"), tmp_path, read) == ["1.png"]
    with refused("1 of the images", tmp_path, "1.png", "evaluation"):
        demand_whole(every, Path("t.json"), tmp_path, read)
    (tmp_path / "2.png").write_bytes(b"")
    with refused("2 of the 3", tmp_path, "1.png, 2.png", "1 %"):
        leave_out_broken(every, Path("t.json"), tmp_path, read)
