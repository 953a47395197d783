"""Images that do not fit into memory are refused before one is decoded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dada_det.data import memory
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import decode
from tests.messages import refused


def test_more_images_than_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a/1.png")
    images = scan_folder(tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * 16**2)
    assert decode(images, 16, 1)[0].shape == (1, 3, 16, 16)
    with refused("1 images", tmp_path, "0.0 GB of memory", "17 px", "data.images_per_class=50", "--image-size"):
        decode(images, 17, 1)
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # where the system does not say, nobody is kept from trying
    assert len(decode(images, 17, 1)[0]) == 1


def test_the_central_crop_is_the_middle_and_never_larger_than_the_image() -> None:
    images = torch.arange(30).view(1, 1, 5, 6)
    assert memory.center_crop(images, 3).tolist() == [[[[7, 8, 9], [13, 14, 15], [19, 20, 21]]]]
    assert torch.equal(memory.center_crop(images[..., :5], 5), images[..., :5])
    with pytest.raises(ValueError, match="6 px does not fit into 5 x 6"):
        memory.center_crop(images, 6)


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", str(tmp_path))
    machine = memory.free_memory()
    (tmp_path / "memory.current").write_text("900\n")
    for most, expected in (("1000\n", 100), ("max\n", None)):
        (tmp_path / "memory.max").write_text(most)
        found = memory.free_memory()
        assert found == expected if expected else found is None or (machine is not None and abs(found - machine) < 4e9)
