"""The curves of a search, epoch by epoch: in history.json, from which search.html is made, and in mmengine's back ends."""

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

from dada_det.data.memory import MemoryImages
from dada_det.report.search_page import note_epoch
from dada_det.search.ranks import world

PICTURES = 4


@HOOKS.register_module()
class NoteCurves(Hook):
    """Notes what search.json says after each epoch, and shows it to config.vis_backends as quantity/operation."""

    priority = "LOW"  # after WritePolicy

    def after_train_epoch(self, runner: Runner) -> None:
        if world()[0] != 0:
            return
        if not Path(runner.work_dir, "search.json").is_file():  # DDAS has a schedule.json in its place
            return
        row = note_epoch(runner.work_dir)
        runner.visualizer.add_scalars({f"{quantity}/{name}": value for name, quantities in row.items()
                                       for quantity, value in quantities.items()}, step=runner.epoch + 1)


def pictures_of(batches: Any) -> list[Image.Image]:
    """Up to PICTURES training images of SearchBatches, evenly over them; none of a search on a detector."""
    memory = getattr(batches, "train", None)
    if not isinstance(memory, MemoryImages):
        return []
    chosen = [place * len(memory) // PICTURES for place in range(min(PICTURES, len(memory)))]
    return [Image.fromarray(memory.images_NCHW[place].permute(1, 2, 0).cpu().numpy()) for place in chosen]
