"""The demo's data: read by the same loaders as the real thing, reproducible, nothing shared between the splits."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dada_det.commands import demo_data
from dada_det.data import synthetic
from dada_det.data.checks import check_coco, find_coco
from dada_det.data.drawing import HUES, KINDS, SHAPES, TEXTURES, Kind, outline
from dada_det.data.folders import scan_folder
from dada_det.data.imagenet import decode
from dada_det.data.synthetic import DemoSize, describe, draw_scene, ensure_demo_data, rasterise, write_demo
from tests.messages import assert_names, refused

SMALL = DemoSize(classes=120, train_per_class=2, val_per_class=1, image_size=32, det_train=24, det_val=12, det_test=3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "demo"
    write_demo(root, seed=0, size=SMALL)
    return root


def digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*") if path.is_file()}


def test_imagenet_layout(demo: Path) -> None:
    train = scan_folder(demo / "imagenet" / "train")
    val = scan_folder(demo / "imagenet" / "val", train.classes)
    assert len(train.classes) == 120 and len(train) == 240 and len(val) == 120 and set(val.labels) == set(range(120))
    assert all(name.endswith(".JPEG") for name in train.files)
    pixels, broken = decode(train, 32, workers=1)
    assert pixels.shape == (240, 3, 32, 32) and broken == [] and pixels.float().std() > 30


def test_kinds_are_shape_texture_hue() -> None:
    assert len(KINDS) == len(set(KINDS)) == 120 == len(SHAPES) * len(TEXTURES) * HUES


def test_coco_layout(demo: Path) -> None:
    layout = find_coco(demo / "coco")
    train = check_coco(layout.train_annotations, layout.train_images)
    val = check_coco(layout.val_annotations, layout.val_images)
    assert (train.images, val.images) == (24, 12) and len(train.categories) == 80
    assert train.annotations >= 24 and not train.dropped and train.without_mask == 0
    assert layout.test_annotations is not None and layout.test_images is not None
    assert check_coco(layout.test_annotations, layout.test_images, test=True).images == 3
    assert "annotations" not in COCO(layout.test_annotations).dataset


def test_annotations_agree_with_their_masks(demo: Path) -> None:
    coco = COCO(demo / "coco" / "annotations" / "instances_train2017.json")
    drawn = {coco.cats[annotation["category_id"]]["name"] for annotation in coco.anns.values()}
    assert drawn <= set(synthetic.CATEGORIES) and len(drawn) >= 7
    for image_id, info in coco.imgs.items():
        with Image.open(demo / "coco" / "train2017" / info["file_name"]) as image:
            assert image.size == (info["width"], info["height"])
        seen = np.zeros((info["height"], info["width"]), int)
        for annotation in coco.imgToAnns[image_id]:
            mask = coco.annToMask(annotation)
            assert mask.shape == seen.shape and mask.sum() == annotation["area"] >= synthetic.MIN_VISIBLE
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            seen += mask
        assert seen.max() <= 1  # what is hidden belongs to no one else


def test_some_objects_are_hidden_in_part(demo: Path) -> None:
    annotations = COCO(demo / "coco" / "annotations" / "instances_train2017.json").dataset["annotations"]
    forms = {type(annotation["segmentation"]) for annotation in annotations}
    assert forms == {list, dict}  # polygons, and run lengths where a part is hidden


def test_scenes_have_large_objects_of_the_right_colour() -> None:
    streams = synthetic._streams(0, "coco/train2017")
    shares = []
    for _ in range(20):
        image, things = draw_scene(next(streams))
        hues = np.asarray(image.convert("HSV"), int)[..., 0]
        assert 1 <= len(things) <= 4 and image.size in synthetic.SCENES
        for thing in things:
            expected = synthetic.CATEGORIES.index(thing.category) * 256 // HUES
            distance = np.abs((hues[thing.mask] - expected + 128) % 256 - 128)
            shares.append(float((distance < 16).mean()))
            assert 0 < max(describe(thing)["bbox"][2:]) <= synthetic.OBJECT_SIZES[1] + 2
    assert np.mean(shares) > 0.85  # JPEG's and the edge's pixels aside


def test_outlines_leave_the_image_without_harm() -> None:
    random = np.random.default_rng(0)
    for kind in (Kind(shape, "dots", 0) for shape in SHAPES):
        points_P2 = outline(kind, (2.0, 50.0), 40, random).round(2)
        canvas = Image.new("L", (60, 60))
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in points_P2 - 0.5], fill=1)
        mask = rasterise(points_P2, 60, 60)
        assert mask.shape == (60, 60) and mask.any()
        assert (mask != np.asarray(canvas, bool)).sum() < 0.12 * mask.sum() + 40  # Pillow fills its outline too
        assert coco_mask.area(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))) == mask.sum()


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    tiny = DemoSize(classes=3, train_per_class=2, val_per_class=1, image_size=24, det_train=3, det_val=2, det_test=1)
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        write_demo(tmp_path / name, seed, tiny)
    one, two, three = (digests(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and one.keys() == three.keys()
    images = [name for name in one if not name.endswith(".json")]
    assert not {one[name] for name in images} & {three[name] for name in images}


def test_no_image_is_in_two_splits(demo: Path) -> None:
    images = [digest for name, digest in digests(demo).items() if not name.endswith(".json")]
    assert len(images) == len(set(images)) == 240 + 120 + 24 + 12 + 3
    first = {next(synthetic._streams(0, split)).bytes(16) for split in synthetic.SPLITS}
    assert len(first) == len(synthetic.SPLITS)
    ids = [set(COCO(demo / "coco" / "annotations" / name).imgs) for name in
           ("instances_train2017.json", "instances_val2017.json", "image_info_test-dev2017.json")]
    assert len(set.union(*ids)) == 24 + 12 + 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tiny = {"classes": 2, "train_per_class": 1, "val_per_class": 1, "image_size": 16,
            "det_train": 1, "det_val": 1, "det_test": 1}
    monkeypatch.setattr(synthetic, "DemoSize", lambda: DemoSize(**tiny))
    yield


@pytest.mark.usefixtures("small")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data" / "demo"
    assert demo_data.main(["--out", str(out), "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "of 7 images" in lines[0]
    assert_names(lines[-1], f"{out}/imagenet", "2 + 2 images", f"{out}/coco", "8 categories", "1 + 1 + 1 images")
    before = digests(out)
    assert ensure_demo_data(out) == out and digests(out) == before
    assert demo_data.main(["--out", str(out), "--seed", "4"]) == 2
    assert_names(capsys.readouterr().err, out, "another seed", "--out")
    assert demo_data.main(["--out", str(out), "--seed", "-1"]) == 2
    assert_names(capsys.readouterr().err, "--seed", "-1")
    assert [path.name for path in out.parent.iterdir()] == ["demo"]


@pytest.mark.usefixtures("small")
def test_the_slower_of_two_processes_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, write = tmp_path / "demo", synthetic._write

    def overtaken(*args: Any) -> None:
        write(*args)
        monkeypatch.setattr(synthetic, "_write", write)
        write_demo(root)

    monkeypatch.setattr(synthetic, "_write", overtaken)
    assert ensure_demo_data(root) == root and (root / "demo.json").is_file()


@pytest.mark.usefixtures("small")
def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").touch()
    with refused(tmp_path / "occupied", "remove", "--out"):
        ensure_demo_data(tmp_path / "occupied")
    (tmp_path / "file").touch()
    with refused(tmp_path / "file"):
        ensure_demo_data(tmp_path / "file" / "demo")
    monkeypatch.setattr(synthetic, "_write_scenes", fail)
    with refused(tmp_path / "demo", "No space left on device", "--out"):
        ensure_demo_data(tmp_path / "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "occupied"]
