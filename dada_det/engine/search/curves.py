"""The curves of a search, epoch by epoch: in history.json, from which search.html is made, and in mmengine's back ends."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dada_det.report.search_page import note_epoch
from dada_det.search.ranks import world


@HOOKS.register_module()
class NoteCurves(Hook):
    """Notes what search.json says after each epoch, and shows it to config.vis_backends as quantity/operation."""

    priority = "LOW"  # after WritePolicy

    def after_train_epoch(self, runner: Runner) -> None:
        if world()[0] != 0:
            return
        row = note_epoch(runner.work_dir)
        runner.visualizer.add_scalars({f"{quantity}/{name}": value for name, quantities in row.items()
                                       for quantity, value in quantities.items()}, step=runner.epoch + 1)
