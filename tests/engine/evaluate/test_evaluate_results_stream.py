"""Arrays of JSON entry by entry: the same as json's, whatever the layout, and the detections of a test on their way."""

import io
import json
import tracemalloc

import numpy as np
import pytest
import torch

from dada_det.data.checks import coco_categories
from dada_det.engine.detect import guard  # noqa: F401  hands mmcv its operators before mmdet is imported
from dada_det.engine.evaluate import results_stream, streamed_results
from dada_det.engine.evaluate.results_stream import parse_array, read_array, write_array
from dada_det.engine.evaluate.streamed_results import StreamedResults, part_path
from dada_det.errors import UserError
from tests.messages import refused

VALUES = [[], [1], [[], {}, "a]", 12.5, -3, None, True, {"a": [1, {"b": "\\\"é"}]}], ["x" * 300]]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_any_layout_in_any_chunks_gives_what_json_gives(values, indent, chunk, monkeypatch):
    monkeypatch.setattr(results_stream, "CHUNK", chunk)
    text = " " + json.dumps(values, indent=indent, ensure_ascii=False) + "\n"
    assert list(parse_array(io.BytesIO(text.encode()), "x")) == values


@pytest.mark.parametrize("values", VALUES)
def test_what_is_written_is_json_with_an_entry_a_line(values, tmp_path):
    write_array(tmp_path / "a.json", iter(values))
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == values == list(read_array(tmp_path / "a.json"))
    assert len(text.splitlines()) == (len(values) + 2 if values else 1)


def test_an_entry_without_end_is_not_read_to_the_end_of_the_file(monkeypatch):
    monkeypatch.setattr(results_stream, "LONGEST", 1000)
    monkeypatch.setattr(results_stream, "CHUNK", 100)
    read = []

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            read.append(size)
            return b'["' + b"x" * (size - 2) if len(read) == 1 else b"x" * size

    with pytest.raises(UserError, match="detection number 0"):
        next(parse_array(Endless(), "x"))
    assert sum(read) < 50_000


def test_what_is_no_text_or_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="no text in UTF-8"):
        list(parse_array(io.BytesIO(b"[\xff]"), "x"))
    with pytest.raises(UserError, match="cut off or broken in detection number 0"):
        list(parse_array(io.BytesIO(b"[" * 100_000), "x"))
    with pytest.raises(UserError, match="cannot read the results file"):
        list(read_array(tmp_path / "none.json"))


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "image_info.json"
    images = [{"id": 10 * number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in range(5)]
    path.write_text(json.dumps({"images": images, "categories": coco_categories()}))
    return path


def sample(number):
    """The prediction for image `number`: as many detections as its number, each with a mask."""
    generator = torch.Generator().manual_seed(number)
    low, high = (torch.rand(number, 2, generator=generator) * 10 + offset for offset in (0, 15))
    masks = torch.rand(number, 30, 40, generator=generator) > 0.5
    return {"img_id": 10 * number, "ori_shape": (30, 40), "pred_instances": {
        "bboxes": torch.cat([low, high], 1), "scores": torch.rand(number, generator=generator), "masks": masks,
        "labels": torch.randint(80, (number,), generator=generator)}}


def made(metric, batches):
    metric.dataset_meta = {"classes": tuple(category["name"] for category in coco_categories())}
    for batch in batches:
        metric.process({}, batch)
    return metric


def test_the_files_are_cocometric_s(annotations, tmp_path):
    from mmdet.evaluation import CocoMetric

    theirs = made(CocoMetric(str(annotations), format_only=True, outfile_prefix=str(tmp_path / "theirs")),
                  [[sample(number)] for number in range(5)])
    ours = made(StreamedResults(str(annotations), str(tmp_path / "ours")), [[sample(0), sample(1)], [sample(2), sample(3)],
                                                                            [sample(4)]])
    assert not ours.results and ours.evaluate(5) == theirs.evaluate(5) == {}
    for kind in ("bbox", "segm"):
        mine, other = (json.loads((tmp_path / f"{name}.{kind}.json").read_text()) for name in ("ours", "theirs"))
        assert len(mine) == 10
        for entry, expected in zip(mine, other, strict=True):
            assert entry.pop("bbox") == pytest.approx(expected.pop("bbox"), abs=1e-6)
            assert entry == expected
    assert not list(tmp_path.glob("*.jsonl"))


def test_memory_does_not_grow_with_the_images(annotations, tmp_path):
    """Ten times the images: half a megabyte more on the disk, next to nothing more in memory, joining the parts included."""
    one, peaks, sizes = [{**sample(4), "img_id": 40}] * 4, [], []
    for batches in (5, 50):
        metric = StreamedResults(str(annotations), str(tmp_path / str(batches)))
        tracemalloc.start()
        try:
            made(metric, [one] * batches).evaluate(4 * batches)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        sizes.append((tmp_path / f"{batches}.segm.json").stat().st_size)
    assert sizes[1] - sizes[0] > 500_000 and peaks[1] < peaks[0] + 100_000, (peaks, sizes)


def of_two_processes(annotations, prefix, monkeypatch, parts):
    """The metrics of two processes that have dealt the images out as mmengine's sampler does."""
    metrics = []
    for rank, numbers in enumerate(parts):
        monkeypatch.setattr(streamed_results, "get_rank", lambda rank=rank: rank)
        metrics.append(made(StreamedResults(str(annotations), str(prefix)), [[sample(number)] for number in numbers]))
        metrics[-1].part.flush()
    monkeypatch.setattr(streamed_results, "get_rank", lambda: 0)
    monkeypatch.setattr(streamed_results, "get_world_size", lambda: 2)
    return metrics[0]


def test_two_processes_write_what_one_writes(annotations, tmp_path, monkeypatch):
    made(StreamedResults(str(annotations), str(tmp_path / "one")), [[sample(number)] for number in range(5)]).evaluate(5)
    of_two_processes(annotations, tmp_path / "two", monkeypatch, [(0, 2, 4), (1, 3, 0)]).evaluate(5)  # the last 0 is padding
    for kind in ("bbox", "segm"):
        assert (tmp_path / f"two.{kind}.json").read_bytes() == (tmp_path / f"one.{kind}.json").read_bytes()


def test_a_part_that_ends_early_is_named(annotations, tmp_path, monkeypatch):
    metric = of_two_processes(annotations, tmp_path / "two", monkeypatch, [(0, 2, 4), (1,)])
    with refused("process 1", "image number 3 of 5"):
        metric.evaluate(5)
    metric = of_two_processes(annotations, tmp_path / "two", monkeypatch, [(0, 2, 4), (1, 3, 0)])
    part_path(tmp_path / "two", 1).unlink()
    with refused("part1.jsonl", "No such file", "--work-dir"):
        metric.evaluate(5)
    assert not list(tmp_path.glob("two.*.json"))


def test_a_full_disk_is_said_in_one_sentence(annotations, monkeypatch):
    monkeypatch.setattr(streamed_results, "part_path", lambda prefix, rank: "/dev/full")
    with refused("x", "No space left on device"):
        made(StreamedResults(str(annotations), "x"), [[sample(4)] for _ in range(2000)])


def test_no_detection_at_all_is_an_empty_list(annotations, tmp_path):
    made(StreamedResults(str(annotations), str(tmp_path / "x")), [[sample(0)]]).evaluate(1)
    assert json.loads((tmp_path / "x.segm.json").read_text()) == []
    assert np.asarray(list(read_array(tmp_path / "x.bbox.json"))).size == 0
