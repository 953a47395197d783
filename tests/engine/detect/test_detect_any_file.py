"""Random COCO files: legal ones are read alike by training, search and evaluation, broken ones get one sentence."""

import contextlib
import copy
import io
import json
import resource
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from dada_det.commands.search import main
from dada_det.data.checks import check_coco
from dada_det.data.coco_instances import FILTER, CocoSummary, what_is_learned
from dada_det.data.detection import load_coco
from dada_det.engine.detect.whole_images import WholeCocoDataset, demand_whole, reader_of
from dada_det.engine.evaluate.figures import evaluate_results
from dada_det.errors import UserError
from tests.data.coco_strategies import BROKEN_ANNOTATIONS, examples, files, ids, mutated, renamed, write

CONFIG = str(Path(__file__).resolve().parents[3] / "configs/debug/search_det.py")
LOADING = [{"type": "LoadImageFromFile"}, {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True}]
MOST_MEMORY = 2e9  # bytes more than the process has held before


def trained_on(summary: CocoSummary, file: Path, folder: Path) -> dict[str, list]:
    """File name -> what MMDetection's training learns: boxes [x1, y1, x2, y2] in the image, labels, pixels of each mask."""
    data = WholeCocoDataset(ann_file=str(file), data_prefix={"img": str(folder)}, metainfo={"classes": summary.categories},
                            filter_cfg=FILTER, pipeline=LOADING, left_out=())
    learned = {}
    for sample in map(data.__getitem__, range(len(data))):
        kept, sides = ~sample["gt_ignore_flags"], torch.tensor([sample["width"], sample["height"]] * 2)
        masks = sample["gt_masks"].masks.reshape(len(kept), sample["height"], sample["width"])[kept]
        learned[Path(sample["img_path"]).name] = [
            sample["gt_bboxes"].tensor[torch.from_numpy(kept)].clamp(min=0).minimum(sides).tolist(),
            sample["gt_bboxes_labels"][kept].tolist(), masks.sum((1, 2)).tolist()]
    return {name: entry for name, entry in learned.items() if entry[0]}


def searched_on(summary: CocoSummary, file: Path, folder: Path) -> dict[str, list]:
    """The same of the search, for the images that have their own size in it."""
    names, learned = [picture.file_name for picture in summary.pictures if picture.boxes], {}
    for picture in summary.pictures:
        if picture.boxes:
            side = max(picture.width, picture.height)
            memory, broken = load_coco(file, folder, side, True, None, torch.Generator())
            assert broken == []
            if len(memory) == len(names):  # none has lost its boxes to the scale
                row = names.index(picture.file_name)
                learned[picture.file_name] = [memory.boxes_M4[row].tolist(), memory.labels_M[row].tolist(),
                                              [int(coco_mask.area(mask)) for mask in memory.masks[row]]]
    return learned


def found_perfectly(content: dict) -> list[dict]:
    return [{"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 0.9}
            for entry in content["annotations"]]


@contextlib.contextmanager
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_MEMORY


@contextlib.contextmanager
def on_disk(content, pictures):
    """(root, annotation file, image folder)."""
    with tempfile.TemporaryDirectory() as root:
        yield Path(root), *write(Path(root), content, pictures)


@examples
def test_training_search_and_evaluation_see_the_same_instances(examples):
    @examples
    @given(files(), st.data())
    def every_file(content, data) -> None:
        numbers = [data.draw(ids(len(content[part]))) for part in ("images", "categories", "annotations")]
        pictures = copy.deepcopy(content["images"])
        content, _ = renamed(content, [], *numbers)
        with on_disk(content, pictures) as (root, file, folder), contextlib.redirect_stdout(io.StringIO()):
            summary = check_coco(file, folder)
            demand_whole(summary.pictures, file, folder, reader_of(LOADING))
            trained = trained_on(summary, file, folder)
            assert {picture.file_name: picture.boxes for picture in summary.pictures if picture.boxes} == {
                name: len(entry[0]) for name, entry in trained.items()}
            if not trained:
                with pytest.raises(UserError, match="has no box to train on"):
                    what_is_learned(summary, file, FILTER)
                return
            what_is_learned(summary, file, FILTER)
            for name, learned in searched_on(summary, file, folder).items():
                assert learned == trained[name]
            (root / "found.json").write_text(json.dumps(found_perfectly(content)))
            assert evaluate_results(file, root / "found.json", "bbox")["AR100"] > 0
    every_file()


@examples
def test_a_mutated_file_is_read_by_all_or_gets_one_sentence(examples):
    @examples
    @given(mutated())
    def every_file(case) -> None:
        content, changed = case
        with on_disk(changed, content["images"]) as (root, file, folder), bounded_memory(), \
                contextlib.redirect_stdout(io.StringIO()):
            try:
                summary = check_coco(file, folder)
                what_is_learned(summary, file, FILTER)
                demand_whole(summary.pictures, file, folder, reader_of(LOADING))
            except UserError as error:
                assert str(error).isprintable()
                return
            if not summary.without_mask:
                trained = trained_on(summary, file, folder)
                assert sum(len(entry[0]) for entry in trained.values()) == sum(each.boxes for each in summary.pictures)
            load_coco(file, folder, 200, True, None, torch.Generator())
            (root / "found.json").write_text(json.dumps(found_perfectly(changed)))
            assert all(-1 <= value <= 100 + 1e-9 for value in evaluate_results(file, root / "found.json", "bbox").values())
    every_file()


@examples
def test_a_broken_annotation_ends_the_command_with_code_2_and_one_sentence(examples):
    @examples
    @given(files(), st.sampled_from(sorted(BROKEN_ANNOTATIONS)), st.data())
    def every_file(content, name, data) -> None:
        spoil, words = BROKEN_ANNOTATIONS[name]
        entry = data.draw(st.sampled_from(content["annotations"]))
        number = entry["id"]
        spoil(content, entry)
        with on_disk(content, content["images"]) as (root, file, _), bounded_memory(), \
                contextlib.redirect_stderr(io.StringIO()) as said:
            assert main(["--config", CONFIG, "--data", str(root), "--work-dir", str(root / "w")]) == 2
        sentence = said.getvalue()
        assert sentence.count("\n") == 1 and sentence.startswith("search_imagenet.sh: error: annotation ")
        assert words in sentence and str(file) in sentence and (name == "no id" or f"annotation {number} in" in sentence)
    every_file()
