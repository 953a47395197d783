"""StreamedResults: a test's detections go to disk while inference runs, so memory does not grow with the images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Any

from mmengine.dist import barrier, broadcast_object_list, get_rank, get_world_size, is_main_process

from dada_det.engine.evaluate.results_stream import write_array
from dada_det.engine.runtime import mmcv_ops
from dada_det.errors import UserError

mmcv_ops.install()  # before mmdet's structures, which import mmcv.ops
from mmdet.evaluation import CocoMetric  # noqa: E402
from mmdet.registry import METRICS  # noqa: E402

Image = dict[str, list[dict[str, Any]]]  # kind -> one image's detections in COCO's results format


@METRICS.register_module()
class StreamedResults(CocoMetric):
    """Writes <outfile_prefix>.bbox.json and, from a detector of masks, .segm.json, as CocoMetric's format_only does.

    Each process appends a line an image to a file of its own; at the end the first process puts them together in the
    order of the data set. It evaluates nothing. The folder must be one that all processes see.
    """

    def __init__(self, ann_file: str, outfile_prefix: str) -> None:
        prefix = [outfile_prefix]
        broadcast_object_list(prefix)  # each process may have made up a folder of its own
        super().__init__(ann_file=ann_file, format_only=True, outfile_prefix=prefix[0])
        self.part: IO[str] | None = None
        self.cat_ids: list[int] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        super().process(data_batch, data_samples)
        try:
            if self.part is None:
                self.part = open(part_path(self.outfile_prefix, get_rank()), "w", encoding="utf-8")  # noqa: SIM115
            self.part.writelines(json.dumps(self.entries(result)) + "\n" for _, result in self.results)
        except OSError as error:
            raise UserError(f"cannot write the detections to {self.outfile_prefix}: {error.strerror or error}; make room "
                            "or choose another --work-dir") from error
        self.results.clear()

    def entries(self, result: dict[str, Any]) -> Image:
        """One image's detections; boxes [N,4] of corners become x, y, width, height in pixels."""
        if self.cat_ids is None:
            assert self.dataset_meta is not None
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta["classes"])
        boxes_N4 = result["bboxes"].copy()
        boxes_N4[:, 2:] -= boxes_N4[:, :2]
        boxes, categories = boxes_N4.tolist(), [self.cat_ids[label] for label in result["labels"]]
        made: Image = {"bbox": [
            {"image_id": result["img_id"], "bbox": box, "score": score, "category_id": category}
            for box, score, category in zip(boxes, result["scores"].tolist(), categories, strict=True)]}
        if "masks" in result:
            scores = result.get("mask_scores", result["scores"]).tolist()
            made["segm"] = [
                {**entry, "score": score, "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}}
                for entry, score, mask in zip(made["bbox"], scores, result["masks"], strict=True)]
        return made

    def evaluate(self, size: int) -> dict[str, float]:
        """Joins the parts. Raises UserError on every process if one of `size` images is missing."""
        if self.part is not None:
            self.part.close()
            self.part = None
        barrier()
        fault: list[str | None] = [None]
        if is_main_process():
            try:
                join_parts(self.outfile_prefix, get_world_size(), size)
            except UserError as error:
                fault = [str(error)]
        broadcast_object_list(fault)
        if fault[0]:
            raise UserError(fault[0])
        return {}


def part_path(prefix: str, rank: int) -> Path:
    return Path(f"{prefix}.part{rank}.jsonl")


def join_parts(prefix: str, processes: int, size: int) -> None:
    """Writes <prefix>.<kind>.json from the processes' parts and removes these.

    mmengine's sampler deals the images out in turn and pads with repeated ones: the first `size` lines, taken in turn, are
    the data set's images in order.

    Args:
        size: images of the data set.

    Raises:
        UserError: a part ends early or its last line is cut off.
    """
    first = next(images_of(prefix, processes, 1))
    for kind in first:
        entries = (entry for image in images_of(prefix, processes, size) for entry in image[kind])
        write_array(f"{prefix}.{kind}.json", entries)
    for rank in range(processes):
        part_path(prefix, rank).unlink()


def images_of(prefix: str, processes: int, size: int) -> Iterator[Image]:
    """The images' detections in the order of the data set."""
    with ExitStack() as stack:
        try:
            parts = [stack.enter_context(open(part_path(prefix, rank), encoding="utf-8")) for rank in range(processes)]
        except OSError as error:
            raise UserError(f"cannot read the detections of a process: {error.filename}: {error.strerror}; put --work-dir "
                            "where all processes see it") from error
        for number, (rank, part) in enumerate(islice(cycle(enumerate(parts)), size)):
            line = part.readline()
            if not line.endswith("\n"):
                raise UserError(f"the detections of process {rank} end at image number {number} of {size}; test again")
            yield json.loads(line)
