"""COCO's ids replaced by 1, 2, 3, ..: evaluators read id 0 as "unmatched", and a double cannot tell ids beyond 2^53
apart."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dada_det.errors import UserError


@dataclass(frozen=True)
class NumberedTruth:
    """An annotation file's content with numbers for ids, and which number each id has become."""

    content: dict[str, Any]
    image_numbers: dict[int, int]
    category_numbers: dict[int, int]

    def results(self, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Detections in COCO's results format with the same numbers.

        Raises:
            UserError: a detection is of an unknown image or category.
        """
        for result in results:
            try:
                yield {**result, "image_id": self.image_numbers[result["image_id"]],
                       "category_id": self.category_numbers[result["category_id"]]}
            except KeyError as error:
                raise UserError(f"a detection belongs to image {result.get('image_id')} and category "
                                f"{result.get('category_id')}, which the annotations do not have both; give the annotations "
                                "that the detector was tested on") from error


def numbered(content: dict[str, Any]) -> NumberedTruth:
    """The content of an annotation file, its images, categories and annotations numbered from 1; entries are copied.

    Images and categories keep the order of their ids, in which evaluators rank equal scores, annotations the file's.
    `ignore` goes: pycocotools puts iscrowd in its place (cocodataset/cocoapi issue 123), other evaluators read it.
    """
    image_numbers, category_numbers = (
        {identifier: number for number, identifier in enumerate(sorted(entry["id"] for entry in content[part]), 1)}
        for part in ("images", "categories"))
    annotations = [
        {**{name: value for name, value in entry.items() if name != "ignore"}, "id": number,
         "iscrowd": int(entry.get("iscrowd", 0)), "image_id": image_numbers[entry["image_id"]],
         "category_id": category_numbers[entry["category_id"]]}
        for number, entry in enumerate(content.get("annotations", []), 1)]
    return NumberedTruth({
        **content, "annotations": annotations,
        "images": [{**entry, "id": image_numbers[entry["id"]]} for entry in content["images"]],
        "categories": [{**entry, "id": category_numbers[entry["id"]]} for entry in content["categories"]],
    }, image_numbers, category_numbers)
