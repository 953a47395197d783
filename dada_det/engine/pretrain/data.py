"""The images of pretraining: what happens to each one in which order, the loaders, and the count of broken files."""

import itertools
import math
import os
from collections.abc import Iterator, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from dada_det.augment.named import Replayable, TorchvisionAugment, image_transform
from dada_det.data.arrays import ArrayImages
from dada_det.data.folders import ImageList
from dada_det.data.imagenet import ImageFolder, check_broken
from dada_det.engine.pretrain.preprocessor import DrawnImages, TrainImages
from dada_det.errors import UserError
from dada_det.models.classifiers import has_fixed_size
from dada_det.models.weights import Preprocessing, of_meta, preprocessing_of
from dada_det.untrusted import printable

MAX_WORKERS = 16  # loader processes a training process starts where the config does not say
SIZE_STEP = 32  # pixels between the sizes of progressive training: the stride of most networks' last feature map
FULL_SIZE_SHARE = 0.25  # of the epochs, the last ones, are at full size

# Principal components of ImageNet's RGB values in 0..1 (Krizhevsky et al., NIPS 2012, section 4.1), with the numbers
# that fb.resnet.torch and the policies' own code share: eigenvalues of the covariance, eigenvectors as columns.
PCA_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
PCA_COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Photometric:
    """torchvision's ColorJitter, then Lighting, on one PIL image (RGB) after its policy.

    Args:
        color_jitter: the arguments of torchvision.transforms.ColorJitter, None for none.
        lighting: standard deviation of the noise along each principal component of ImageNet's colours (AlexNet's is 0.1), 0
            for none.

    All randomness comes from the generator of the call.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, color_jitter: dict[str, Any] | None, lighting: float) -> None:
        self.jitter, self.lighting = None, lighting
        if color_jitter:
            from torchvision.transforms import ColorJitter  # 1 s to import

            try:
                self.jitter = ColorJitter(**color_jitter)
            except (TypeError, ValueError) as error:
                raise UserError(f"color_jitter = {color_jitter!r} does not fit torchvision's ColorJitter ({error}); "
                                "write color_jitter = dict(brightness=0.4, contrast=0.4, saturation=0.4) or None") from error
        if not (isinstance(lighting, int | float) and lighting >= 0):
            raise UserError(f"lighting is {lighting!r}; write a standard deviation such as lighting = 0.1, or 0 for none")

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        if self.jitter is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
            # torchvision draws from the global generator only: it is lent out, and fork_rng gives it back.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                image = self.jitter(image)
        if self.lighting > 0:
            alphas = torch.randn(3, generator=generator, dtype=torch.float64).numpy() * self.lighting
            image = lighten(image, alphas)
        return image


def lighten(image: Image.Image, alphas: np.ndarray) -> Image.Image:
    """Adds to every pixel the sum of the principal components, each times its eigenvalue and its alpha (float [3]).

    As the samples are uint8, the sum is rounded and clipped to 0..255, which the published float pipelines do not do.
    """
    shifts = 255 * PCA_COMPONENTS @ (alphas * PCA_EIGENVALUES)
    table = np.arange(256)[None] + shifts[:, None]
    return image.point(table.round().clip(0, 255).astype(int).flatten().tolist())


def image_sizes(config: Config) -> list[int]:
    """The side of the training images in each epoch, in pixels.

    With progressive_size it starts there and grows by SIZE_STEP, each size for equally many epochs. The last quarter of the
    epochs has image_size.

    Raises:
        UserError: train_size is no number of pixels, progressive_size is not smaller than image_size, or the network takes
            one size only.
    """
    first, last, other = config.get("progressive_size"), config.image_size, pixels(config, "train_size")
    if other:
        if other != last and has_fixed_size(config.classifier.name):
            raise UserError(f"{config.classifier.name} takes images of one size only; write train_size = None")
        return [other] * config.epochs
    if first is None:
        return [last] * config.epochs
    if not (isinstance(first, int) and 8 <= first < last):
        raise UserError(f"progressive_size is {first!r} and image_size {last}; the first must be a smaller number of pixels "
                        "and at least 8, or None for image_size throughout")
    if has_fixed_size(config.classifier.name):
        raise UserError(f"{config.classifier.name} takes images of one size only; write progressive_size = None")
    smaller = range(first, last, SIZE_STEP)
    growing = config.epochs - math.ceil(FULL_SIZE_SHARE * config.epochs)
    return [smaller[epoch * len(smaller) // growing] if epoch < growing else last for epoch in range(config.epochs)]


def training_images(config: Config, images: ImageList | ArrayImages, policy: Replayable) -> ImageFolder:
    """The training images: crop, flip (unless config.mirror is False), policy, then jitter, lighting and Cutout if
    configured.

    With policy_on = "device" the samples only hold what the policy draws, and the preprocessor applies it, before it
    normalises: the order and the images are the same either way.

    Raises:
        UserError: policy_on is unknown, or the policy or a later step cannot be applied on the device.
    """
    place, sizes = config.get("policy_on", "workers"), image_sizes(config)
    if place not in ("workers", "device"):
        raise UserError(f"policy_on is {place!r}; write policy_on = 'workers' or policy_on = 'device'")
    made: dict[str, Any] = {"sizes": sizes, "transform": image_transform(policy), "seed": config.seed,
                            "padding": pixels(config, "padding"), "cutout": pixels(config, "cutout") or 0,
                            "mirror": config.get("mirror") is not False,
                            "interpolation": preprocessing(config).interpolation}
    if place == "workers" or policy is None:
        return TrainImages(images, **made, after=Photometric(config.get("color_jitter"), config.get("lighting") or 0))
    if isinstance(policy, TorchvisionAugment):
        raise UserError(f"the policy {policy.name} is torchvision's code for one image at a time and cannot be applied on "
                        "the device; write policy_on = 'workers'")
    if config.get("color_jitter") or config.get("lighting"):
        raise UserError("color_jitter and lighting come after the policy and are applied in the workers only; write "
                        "policy_on = 'workers', or color_jitter = None and lighting = 0")
    return DrawnImages(images, **made)


def preprocessing(config: Config) -> Preprocessing:
    """How the images are prepared: as for the weights that the training starts from, but for what the config itself says.

    Raises:
        UserError: interpolation or crop_share has an impossible value.
    """
    own = {"interpolation": config.get("interpolation"), "crop_share": config.get("crop_share"),
           **(config.get("data_preprocessor") or {})}
    found = preprocessing_of(config.get("weights"), config.classifier.name)
    return of_meta({**asdict(found), **{name: value for name, value in own.items() if value is not None}}, "the config")


def pixels(config: Config, key: str) -> int | None:
    """config[key], a number of pixels or None.

    Raises:
        UserError: it is anything else.
    """
    value = config.get(key)
    if value is not None and not (isinstance(value, int) and value >= 0):
        raise UserError(f"{key} is {value!r}; write a number of pixels, or None")
    return value


class WholeBatches(DefaultSampler):
    """This rank's share of the shuffled images, without those that fill no whole batch of `batch` images.

    An epoch is then a whole number of updates, also where a batch is computed in parts. Fewer images than one batch are all
    kept, or with `pairs` an even number of them.

    Args:
        repeats: copies of each image in a batch (repeated augmentation, Hoffer et al., CVPR 2020, as timm's
            RepeatAugSampler). An epoch is as long as without and sees fewer images. Copy c of image i has the index i + c
            len(dataset).
    """

    def __init__(self, dataset: Sized, batch: int, seed: int, repeats: int = 1, pairs: bool = False) -> None:
        super().__init__(dataset, shuffle=True, seed=seed)
        fewer = self.num_samples - (self.num_samples % 2 if pairs else 0)
        self.kept, self.repeats = self.num_samples // batch * batch or fewer, repeats

    def __iter__(self) -> Iterator[int]:
        if self.repeats == 1:
            return itertools.islice(super().__iter__(), self.kept)
        images = len(self.dataset)
        order = torch.randperm(images, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        copies = (index + copy * images for index in order for copy in range(self.repeats))
        return itertools.islice(copies, self.rank, self.rank + self.kept * self.world_size, self.world_size)

    def __len__(self) -> int:
        return self.kept


def parts_of(config: Config) -> int:
    """In how many parts a batch is computed one after the other: `accumulation`, 1 where it is not set."""
    return config.get("accumulation") or 1


def repeats_of(config: Config) -> int:
    """How many copies of an image a batch holds: `repeats`, 1 where it is not set.

    Raises:
        UserError: it is no whole number from 1.
    """
    value = 1 if config.get("repeats") is None else config.repeats
    if not (type(value) is int and value >= 1):
        raise UserError(f"repeats is {value!r}; write how many copies of each image a batch holds, 1 or more")
    return value


def loaders(config: Config, train: ImageList | ArrayImages, val: ImageList | ArrayImages,
            policy: Replayable) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of this rank's share, in parts of a batch; their worker processes make the images one by one."""
    processes, parts = get_world_size(), parts_of(config)
    if parts > 1 and len(train) < config.batch_size:
        raise UserError(f"accumulation = {parts} divides a batch of {config.batch_size} images, but there are only "
                        f"{len(train)}; give a smaller --batch-size, or accumulation = 1")
    workers = config.get("workers")
    if workers is None:
        # Without a GPU the network takes far longer than the images, and wants the cores itself.
        cores = len(os.sched_getaffinity(0)) // processes if torch.cuda.is_available() else 1
        workers = min(MAX_WORKERS, max(1, cores))
    share, pairs = config.batch_size // processes, bool(config.get("mixup"))
    if pairs and share // parts % 2:
        raise UserError(f"mixup mixes the images of a batch in pairs, and each of {processes} processes computes "
                        f"{share // parts} at once (batch_size {config.batch_size}, accumulation {parts}); give a "
                        "--batch-size that makes this even, or mixup = dict()")
    options: dict[str, Any] = {"batch_size": share // parts, "num_workers": workers,
                               "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
    train_set, repeats = training_images(config, train, policy), repeats_of(config)
    sampler = WholeBatches(train_set, share, config.seed, repeats, pairs)
    if not len(sampler):
        raise UserError(f"mixup mixes images in pairs, and of {len(train)} each of {processes} processes has one; give more "
                        "images, or mixup = dict()")
    prepared = preprocessing(config)
    val_set = ImageFolder(val, config.image_size, train=False, padding=pixels(config, "padding"),
                          interpolation=prepared.interpolation, crop_share=prepared.crop_share)
    return (DataLoader(train_set, sampler=sampler, **options),
            DataLoader(val_set, sampler=DefaultSampler(val_set, shuffle=False, round_up=False), **options))


@HOOKS.register_module()
class WatchImages(Hook):
    """Tells the training images which epoch it is, and counts those that do not decode over workers and ranks.

    They are named once; more than 1 % of a folder stops every rank with UserError at the end of the epoch.
    """

    def __init__(self) -> None:
        self.broken: dict[Path, set[str]] = {}  # folder -> names found here
        self.named: set[tuple[Path, str]] = set()

    def before_train_epoch(self, runner: Runner) -> None:
        runner.train_dataloader.dataset.set_epoch(runner.epoch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.note(runner.train_dataloader, data_batch)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.note(runner.val_dataloader, data_batch)

    def after_train_epoch(self, runner: Runner) -> None:
        self.report(runner.train_dataloader.dataset.images)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.report(runner.val_dataloader.dataset.images)

    def note(self, loader: DataLoader[Any], batch: dict[str, Any]) -> None:
        names = {name for name in batch["broken"] if name}
        self.broken.setdefault(loader.dataset.images.root, set()).update(names)  # type: ignore[attr-defined]

    def report(self, images: ImageList | ArrayImages) -> None:
        everywhere = sorted(set().union(*all_gather_object(self.broken.get(images.root, set()))))
        new = [name for name in everywhere if (images.root, name) not in self.named]
        check_broken(everywhere, len(images), images.root)
        if new and is_main_process():
            print(f"pretrain  {len(everywhere)} of {len(images)} images in {images.root} did not decode and were replaced "
                  f"by the next of their class: {', '.join(map(printable, new[:3]))}{', ..' if len(new) > 3 else ''}",
                  flush=True)
        self.named.update((images.root, name) for name in new)
