"""nuclei-stain: a detector that learns on fluorescence and works on stained tissue.

Tiles of 128 px, boxes of their masks. Half of the stained images is the target, half tests; the tiles of an image stay
together. A RetinaNet around EfficientNet-Lite0 with its ImageNet weights (search_det_lite0.py); box AP by pycocotools, in
percent. A RetinaNet from random weights has learned nothing of stained tissue after 12 epochs (AP 0.2 at most).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dada_det.augment.named import AnyPolicy
from dada_det.augment.policy import Policy
from dada_det.commands.common import ROOT, load_config
from dada_det.data.checks import find_coco
from dada_det.data.detection import MemoryDetection, load_coco
from dada_det.data.random import generator_for
from dada_det.errors import UserError
from dada_det.models.backbone import export_backbone
from dada_det.models.classifiers import build_classifier
from natural_problems import DRAWN, LITE0, data_folder, start_weights

CONFIG = str(ROOT / "tools/bench/search_det_lite0.py")
AVERAGE = 0.3  # share of the last steps whose mean weights are tested


@dataclass(frozen=True)
class DetectorRecipe:
    """How the detector trains: AdamW on a cosine."""

    model: str = "tools/bench/search_det_lite0.py"
    image_size: int = 128
    epochs: int = 3
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    mirror: bool = True
    average: float = AVERAGE


@dataclass(frozen=True)
class DetectionProblem:
    """A problem whose score is a box AP; its methods are those of natural_problems.Problem."""

    name: str
    recipe: DetectorRecipe
    shift: bool = True

    def score(self, policy: AnyPolicy, seed: int, training_seed: int, with_target: bool, folder: Path) -> float:
        """AP in percent on the test tiles, of a detector trained with `policy`."""
        import dada_det.engine.detection  # noqa: F401 (registers the backbone)
        from dada_det.engine.search.detection import build_detector
        from detector_trial import average_precision, train_detector
        from planted_coco import joined

        if not isinstance(policy, Policy | None):
            raise UserError(f"{self.name}: {policy.name} moves pixels and leaves the boxes; one-op is like trivial and "
                            "carries them along")
        train, test, target = _loaded(seed, self.recipe.image_size)
        train = joined(train, target) if with_target else train
        recipe = self.recipe
        torch.manual_seed(training_seed)
        config = load_config(CONFIG)
        config.model.backbone.init_cfg.checkpoint = str(lite0_backbone(folder.parent))
        detector = build_detector(config.model, classes=1)
        train_detector(detector, train, policy=policy, epochs=recipe.epochs, batch_size=recipe.batch_size, lr=recipe.lr,
                       weight_decay=recipe.weight_decay, seed=training_seed, average=recipe.average)
        return average_precision(detector, test)["AP"]

    def search_flags(self, seed: int, data: Path) -> list[str]:
        """What the search command is told of this problem; its images are written to `data` once."""
        from planted_coco import write_coco

        if not (data / "whole").exists():
            train, _, target = _loaded(seed, self.recipe.image_size)
            write_coco(data, train=train, target=target)
            (data / "whole").touch()
        return ["--config", CONFIG, "--data", str(data), "--val-data", f"{data}/annotations/instances_target.json"]

    def search_options(self, data: Path) -> list[str]:
        """Config entries of the search: its backbone, and how the images are taken."""
        return [f"model.backbone.init_cfg.checkpoint={lite0_backbone(data.parent)}", "masks=True",
                f"mirror={self.recipe.mirror}"]

    def parts(self, seed: int) -> tuple[MemoryDetection, ...]:
        """(training tiles, test tiles, target tiles)."""
        return _loaded(seed, self.recipe.image_size)


def lite0_backbone(folder: Path) -> Path:
    """EfficientNet-Lite0's ImageNet weights as a backbone file in `folder`, which is written once."""
    path = folder / "efficientnet_lite0.pth"
    if not path.exists():
        network = build_classifier(LITE0, num_classes=1000, image_size=224, weights=start_weights())
        export_backbone(network.state_dict(), path, {"mean": [127.0] * 3, "std": [128.0] * 3, "channel_order": "RGB",
                                                     "classes": [], "policy_sha256": None}, LITE0)
    return path


NUCLEI = DetectionProblem("nuclei-stain", DetectorRecipe())


@lru_cache(maxsize=2)
def _loaded(seed: int, side: int) -> tuple[MemoryDetection, ...]:
    from planted_coco import tiles

    data = data_folder()
    fluorescence, stained = (_whole(data / name, side) for name in ("nuclei", "natural/nuclei-histology"))
    order = torch.randperm(len(stained), generator=generator_for(seed, DRAWN))
    return (tiles(fluorescence, torch.arange(len(fluorescence)), side),
            *(tiles(stained, order[half::2].sort().values, side) for half in (1, 0)))


@lru_cache(maxsize=2)
def _whole(data: Path, side: int) -> MemoryDetection:
    """The training images of a COCO layout at twice `side` px."""
    annotations, images = find_coco(data, ("train",)).part("train")
    return load_coco(annotations, images, 2 * side, True, None, generator_for(0))[0]
