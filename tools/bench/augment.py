"""How fast a policy is applied, beside the other ways to do it: one PIL image after the other, and a batch on the device.

    python tools/bench/augment.py --json augment.json
    python tools/bench/augment.py --device cuda --rounds 50

The policy is DADA's for ImageNet (dada-imagenet), the images are 224 px. All rows of a path take turns in one process, an
image or a batch each, with torch and OpenCV on one thread. On the CPU the clock is the process's own CPU time, which other
processes on the machine disturb least; on a GPU it is wall time until the device has done all of it.

path "image"  96 PIL images, one by one, as a loader's worker has them
  dada              PolicyTransform, its draws included
  dada_autoaugment  the same with AutoAugment's policy for ImageNet, which the next two apply
  timm              timm's AutoAugment, policy "original", nearest sampling
  torchvision_v2    torchvision.transforms.v2.AutoAugment, nearest sampling
  trivial           torchvision.transforms.v2.TrivialAugmentWide
  pil               the draws of "dada", made beforehand, applied with Pillow's own functions: what the ratios refer to
path "batch"  a uint8 batch, 32 images on the CPU, 256 on a GPU
  dada                  PolicyTransform, its draws included
  torchvision_by_group  the same draws, made beforehand, with torchvision.transforms.v2.functional: one call for the images
                        that share operation and value, one an image for Cutout; what the ratios refer to
  training_step         on a GPU: ResNet-50 forward, backward and SGD in bfloat16, channels_last

images_per_second  the median over the rounds; low, high: 80 % of the rounds lie between them; n: the rounds
ratio              images_per_second over the reference's in the same round, the median; ratio_low, ratio_high as above
share_of_training_step  seconds over those of training_step in the same round, the median
"""

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform
from torch import Tensor
from torchvision.models import resnet50
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from dada_det.augment import OPERATION_NAMES, Draws, Policy, PolicyTransform
from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import CUTOUT_COLOR, box_of, value_of
from dada_det.commands import common
from pillow_reference import pillow_reference

SIDE = 224
IMAGES, BATCH = 96, 32
REFERENCE = {"image": "pil", "batch": "torchvision_by_group"}
COLUMNS = {"path": "<5", "what": "<20", "images_per_second": ">17.0f", "low": ">7.0f", "high": ">7.0f", "ratio": ">6.2f",
           "ratio_low": ">9.2f", "ratio_high": ">10.2f", "n": ">4d"}
Task = Callable[[], Iterator[Any]]  # all images once, one after the other; made anew for each round, seeded by its number


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def sample_images(count: int) -> Tensor:
    """Crops of scikit-learn's two photographs, or smooth noise where it is missing, uint8 [count,3,224,224]."""
    generator = seeded(0)
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        coarse = torch.rand(count, 3, 7, 7, generator=generator)
        return (torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear") * 255).byte()
    photographs = [torch.tensor(pixels).permute(2, 0, 1) for pixels in load_sample_images().images]
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (int(torch.randint(length - SIDE, (1,), generator=generator)) for length in photograph.shape[1:])
        crops.append(photograph[:, top:top + SIDE, left:left + SIDE])
    return torch.stack(crops)


def policy_named(name: str) -> Policy:
    policy = resolve_policy(name)
    assert isinstance(policy, Policy)
    return policy


def image_tasks(images: Sequence[Image.Image]) -> dict[str, Callable[[int], Task]]:
    """The rows of path "image"; a task gives one augmented image after the other."""
    def ours(name: str) -> Callable[[int], Task]:
        transform = PolicyTransform(policy_named(name))

        def prepare(number: int) -> Task:
            generator = seeded(number)
            return lambda: (transform(image, generator) for image in images)

        return prepare

    def foreign(augment: Callable[[Image.Image], Image.Image]) -> Callable[[int], Task]:
        return lambda number: lambda: map(augment, images)

    return {"dada": ours("dada-imagenet"), "dada_autoaugment": ours("autoaugment-imagenet"),
            "timm": foreign(auto_augment_transform("original", {"interpolation": Image.Resampling.NEAREST})),
            "torchvision_v2": foreign(v2.AutoAugment()), "trivial": foreign(v2.TrivialAugmentWide()),
            "pil": lambda number: plain_pil(images, number)}


def plain_pil(images: Sequence[Image.Image], number: int) -> Task:
    """What "dada" does in the round `number`, with Pillow's own functions."""
    policy, generator = policy_named("dada-imagenet"), seeded(number)
    transform = PolicyTransform(policy)
    slots_of_images = [transform.draw(1, generator).active_slots()[0] for _ in images]

    def run() -> Iterator[Image.Image]:
        for image, slots in zip(images, slots_of_images, strict=True):
            for operation, magnitude, sign, center in slots:
                image = pillow_reference(image, OPERATION_NAMES[operation], magnitude, sign, policy.ranges, center)
            yield image

    return run


def batch_tasks(images_BCHW: Tensor) -> dict[str, Callable[[int], Task]]:
    """The rows of path "batch" on the device of the images; a task gives the augmented batch, or the step's loss."""
    policy = policy_named("dada-imagenet")
    transform = PolicyTransform(policy)

    def dada(number: int) -> Task:
        return lambda: once(lambda: transform(images_BCHW, seeded(number)))

    def torchvision(number: int) -> Task:
        draws = transform.draw(len(images_BCHW), seeded(number))
        return lambda: once(lambda: by_group(images_BCHW, draws, policy.ranges))

    tasks: dict[str, Callable[[int], Task]] = {"dada": dada, "torchvision_by_group": torchvision}
    if images_BCHW.is_cuda:
        step = training_step(images_BCHW)
        tasks["training_step"] = lambda number: lambda: once(step)
    return tasks


def once(work: Callable[[], Tensor]) -> Iterator[Tensor]:
    yield work()


def by_group(images_BCHW: Tensor, draws: Draws, ranges: str) -> Tensor:
    """The draws with torchvision's functions: in each slot one call for the images of equal operation and value."""
    results_BCHW = images_BCHW.clone()
    slots = zip(*(column.T.tolist() for column in (draws.operations_BK, draws.active_BK, draws.magnitudes_BK,
                                                   draws.signs_BK)), draws.centers_BK2.unbind(1), strict=True)
    for operations, active, magnitudes, signs, centers_B2 in slots:
        groups = defaultdict(list)
        for row in range(len(images_BCHW)):
            if active[row]:
                groups[operations[row], value_of(operations[row], magnitudes[row], signs[row], ranges)].append(row)
        for (operation, value), rows in groups.items():
            if OPERATION_NAMES[operation] == "Cutout":
                for row in rows:
                    erase(results_BCHW[row], value, centers_B2[row].tolist())
            else:
                chosen = torch.tensor(rows, device=images_BCHW.device)
                results_BCHW[chosen] = by_torchvision(results_BCHW[chosen], OPERATION_NAMES[operation], value)
    return results_BCHW


def by_torchvision(images_BCHW: Tensor, name: str, value: float) -> Tensor:
    """One operation with one value on all images, with the arguments that torchvision's own AutoAugment gives."""
    def affine(shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
        degrees = [math.degrees(math.atan(part)) for part in shear]
        return functional.affine(images_BCHW, 0.0, list(shift), 1.0, degrees, center=[0, 0])

    height, width = images_BCHW.shape[2:]
    operations: dict[str, Callable[[], Tensor]] = {
        "ShearX": lambda: affine(shear=(value, 0)),
        "ShearY": lambda: affine(shear=(0, value)),
        "TranslateX": lambda: affine(shift=(int(-value * width), 0)),
        "TranslateY": lambda: affine(shift=(0, int(-value * height))),
        "Rotate": lambda: functional.rotate(images_BCHW, value),
        "AutoContrast": lambda: functional.autocontrast(images_BCHW),
        "Invert": lambda: functional.invert(images_BCHW),
        "Equalize": lambda: functional.equalize(images_BCHW),
        "Solarize": lambda: functional.solarize(images_BCHW, value),
        "Posterize": lambda: functional.posterize(images_BCHW, int(value)),
        "Contrast": lambda: functional.adjust_contrast(images_BCHW, value),
        "Color": lambda: functional.adjust_saturation(images_BCHW, value),
        "Brightness": lambda: functional.adjust_brightness(images_BCHW, value),
        "Sharpness": lambda: functional.adjust_sharpness(images_BCHW, value),
    }
    return operations[name]()


def erase(image_CHW: Tensor, value: float, center: Sequence[float]) -> None:
    """Cutout in place."""
    height, width = image_CHW.shape[1:]
    x0, y0, x1, y1 = map(int, box_of(value, center[0], center[1], width, height))
    color = torch.tensor(CUTOUT_COLOR, dtype=torch.uint8, device=image_CHW.device)[:, None, None]
    functional.erase(image_CHW, y0, x0, y1 - y0 + 1, x1 - x0 + 1, color, inplace=True)


def training_step(images_BCHW: Tensor) -> Callable[[], Tensor]:
    """One step of ResNet-50 as pretraining takes it: bfloat16, channels_last, SGD with momentum."""
    model = resnet50().to(images_BCHW.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    inputs = (images_BCHW.float() / 255).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    def run() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


def measure(tasks: dict[str, Callable[[int], Task]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each task in each round; the first round is not counted.

    Within a round the tasks take turns, a result each and each time another one first, so that a machine that slows down
    slows all of them and none finds the image in the cache more often than the others.
    """
    seconds: dict[str, list[float]] = {what: [] for what in tasks}
    for number in range(rounds + 1):
        running = {what: prepare(number)() for what, prepare in tasks.items()}
        taken = dict.fromkeys(tasks, 0.0)
        order = deque(tasks)
        while running:
            order.rotate()
            for what in [what for what in order if what in running]:
                start = clock()
                result = next(running[what], None)
                taken[what] += clock() - start
                if result is None:
                    del running[what]
        for what in tasks:
            seconds[what].append(taken[what])
    return {what: each[1:] for what, each in seconds.items()}


def table_rows(path: str, seconds: dict[str, list[float]], images: int) -> list[dict[str, Any]]:
    reference = seconds[REFERENCE[path]]
    rows = []
    for what, taken in seconds.items():
        rate = spread([images / each for each in taken])
        ratio = spread([base / each for base, each in zip(reference, taken, strict=True)])
        row = {"path": path, "what": what, "images_per_second": rate[0], "low": rate[1], "high": rate[2],
               "ratio": ratio[0], "ratio_low": ratio[1], "ratio_high": ratio[2], "n": len(taken)}
        if step := seconds.get("training_step"):
            row["share_of_training_step"] = statistics.median(a / b for a, b in zip(taken, step, strict=True))
        rows.append(row)
    return rows


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the ends between which 80 % of the values lie."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), tenths[0], tenths[-1]


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    device = torch.device(args.device)

    def until_done() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    images = sample_images(IMAGES)
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    batch = images[:BATCH].repeat(8 if device.type == "cuda" else 1, 1, 1, 1).to(device)
    print("  ".join(f"{name:{form.partition('.')[0].rstrip('d')}}" for name, form in COLUMNS.items()))
    rows = []
    for path, tasks, size, clock in (("image", image_tasks(pictures), IMAGES, time.process_time),
                                     ("batch", batch_tasks(batch), len(batch),
                                      until_done if device.type == "cuda" else time.process_time)):
        for row in table_rows(path, measure(tasks, args.rounds, clock), size):
            rows.append(row)
            share = f"  {row['share_of_training_step']:.1%} of a training step" if "share_of_training_step" in row else ""
            print("  ".join(f"{row[column]:{form}}" for column, form in COLUMNS.items()) + share, flush=True)
    if args.json:
        from dada_det.report.measurements import write_rows

        write_rows(args.json, rows, {"device": args.device, "batch": len(batch), "rounds": args.rounds})
        print(f"augment  done: {len(rows)} rows in {args.json}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="augment.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=rounds, default=20, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                        help="of the batch (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write hardware, versions and rows")
    return common.run(run, parser, argv)


def rounds(text: str) -> int:
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text} rounds show no spread; give at least 2")
    return number


if __name__ == "__main__":
    sys.exit(main())
