"""Which images belong together, and halves that keep them together.

Frames of a video, pictures of one traffic sign, slices of a patient and copies of one image are groups. If a group stands on
both sides, the network recognises validation images by memory, and every augmentation looks harmful.
N images, C = 3 channels, H height, W width in pixels.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dada_det.data.folders import AUTO, NONE
from dada_det.errors import UserError

FEWEST = 3  # groups of several images in a class; two are more often two sources of images than two videos
LARGEST = 1 / 2  # of a class's images in one group; a larger one leaves no halves
ONE_SIDED = 1e6  # halves by which a class with no image on one side is worse; more than all other distances together
LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
SIDE = 16  # of the images that are compared, in pixels
SAME = 0.995  # correlation of the copies of one image
LEAST, ONE_CLASS = 0.95, 0.98  # correlation of near copies: at least, and where there is no other class to compare with
NEARER = 1 / 4  # of the distance between images of two classes
FLAT = 2.0  # grey levels of standard deviation
SAMPLE, CHUNK, PIXELS = 2000, 512, 2 ** 24  # images that set the threshold; rows and values computed at once
NEIGHBOURS, ENOUGH = 8, 12  # of a leak: the nearest training images, and how many a class must have
# In pixels: 0.42 to 0.5 for four pictures of a sign halved one by one; 0.57 for digits, 0.6 to 0.8 for photographs.
LEAK_SIDE, SIBLING = 8, 0.51
FARTHER = 1.15  # than training images are to each other; by sign 1.2 to 2, one by one 0.9 to 1.1
EXPORT_HASH = re.compile(r"\.rf\.[0-9a-f]{32}$")  # Roboflow's, which it appends to the name of the image


@dataclass(frozen=True)
class Groups:
    """The groups of N images.

    Args:
        ids: [N], equal for images of one group.
        said: what made them, as a clause; None: each image is alone.
    """

    ids: tuple[int, ...]
    said: str | None = None


def groups_of(names: Sequence[str] | None, labels: Sequence[int], rule: str,
              images_NCHW: Tensor | None = None) -> Groups:
    """The groups of images by their relative paths (forward slashes; None where they have none), classes and pixels.

    Args:
        names: relative paths with forward slashes; None: there are none.
        labels: [N].
        rule: "none": each image alone.
            "auto": images of one class are a group if their file names differ in the last number only. This counts in
            classes where it makes three or more groups of several images, none of them of more than half of the class. Near
            copies join their groups.
            Anything else is a regular expression: the part of a path that it matches names the group, across classes; an
            image without a match is alone.
        images_NCHW: uint8, in which "auto" looks for near copies; None: it does not look.

    Raises:
        UserError: the expression is invalid or matches nothing.
    """
    keys = list(map(str, range(len(labels))))
    if names is not None and rule != NONE:
        keys = _numbered(names, labels) if rule == AUTO else _matched(names, rule)
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    ids = [numbers[key] for key in keys]
    counts = Counter(keys)
    several = [key for key, count in counts.items() if count > 1]
    said = []
    if several:
        _, _, example = max(several, key=lambda key: counts[key]).partition("/")  # behind the label
        said.append(f"{len(several)} groups of file names such as {example}")
    if rule == AUTO and images_NCHW is not None:
        before, ids = len(numbers), _joined(ids, labels, near_copies(images_NCHW, labels))
        if len(set(ids)) < before:
            said.append(f"{before - len(set(ids))} near copies kept beside their originals")
    return Groups(tuple(ids), " and ".join(said) or None)


def _numbered(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """For each image a key, the same for a group: the path with a star for its last number, or the whole path."""
    keys = list(names)
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append(row)
    for rows in members.values():
        top = posixpath.commonpath([posixpath.dirname(names[row]) for row in rows])
        starred = {row: _starred(names[row], top) for row in rows}
        sizes = Counter(starred.values())
        if sum(size > 1 for size in sizes.values()) >= FEWEST and max(sizes.values()) <= LARGEST * len(rows):
            for row in rows:
                keys[row] = starred[row]
    return [f"{label}/{key}" for label, key in zip(labels, keys, strict=True)]


def _starred(name: str, top: str) -> str:
    """The path without ending, with a star for the last number of the file's name.

    A bare number in `top`, the folder that all images of the class share, stands for itself: it names no group.
    """
    folder, slash, file = name.rpartition("/")
    key = LAST_NUMBER.sub("*", EXPORT_HASH.sub("", file.rpartition(".")[0] or file))
    return name if key == "*" and folder == top else folder + slash + key


def _matched(names: Sequence[str], rule: str) -> list[str]:
    try:
        matches = [re.search(rule, name) for name in names]
    except re.error as error:
        raise UserError(f"--groups {rule!r} is no regular expression: {error}; give one that matches what the names of a "
                        f"group have in common, or {AUTO} or {NONE}") from error
    if not any(matches):
        raise UserError(f"--groups {rule!r} matches none of the {len(names)} images, such as {names[0]!r}; give an "
                        f"expression that matches a part of their paths, or {AUTO} or {NONE}")
    return [f"match/{match[0]}" if match else f"alone/{name}" for match, name in zip(matches, names, strict=True)]


def near_copies(images_NCHW: Tensor, labels: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs that join images of one class that show the same: resized, stored again, slightly cropped, a video's next frame.

    Not all pairs: enough of them to connect near copies, and near copies of these. Two images are near copies if their
    pixels at 16 x 16 correlate with at least 0.95, and if their distance from 1 is at most a quarter of that of the most
    similar images of different classes (the 99 % quantile). With one class alone the limit is 0.98. So what all images
    share, such as a white background, counts for nothing. Images of one colour have no copies.
    """
    described_ND = described(images_NCHW)
    labels_N = torch.as_tensor(labels)
    sample = torch.linspace(0, len(labels) - 1, min(len(labels), SAMPLE)).long()
    alike_SS = (described_ND[sample] @ described_ND[sample].T).masked_fill(labels_N[sample, None] == labels_N[sample], -1)
    least = ONE_CLASS if len(labels_N.unique()) < 2 else \
        max(LEAST, 1 - NEARER * (1 - alike_SS.amax(1).quantile(0.99).item()))
    pairs: list[tuple[int, int]] = []
    for label in labels_N.unique():
        rows = (labels_N == label).nonzero().flatten()
        for first in rows.split(CHUNK):
            found = (described_ND[first] @ described_ND[rows].T > least).nonzero()  # by row; a row is a copy of itself
            # An image's copies are chained, so that a hundred frames that look the same make 99 pairs and not 4,950.
            links = (found[:-1, 1] * len(rows) + found[1:, 1])[found[:-1, 0] == found[1:, 0]].unique()
            pairs += zip(rows[links // len(rows)].tolist(), rows[links % len(rows)].tolist(), strict=True)
    return pairs


def copied(train_NCHW: Tensor, val_MCHW: Tensor) -> list[int]:
    """The validation images that also train: those whose pixels at 16 x 16 correlate with a training image's by 0.995."""
    side = min(train_NCHW.shape[-1], val_MCHW.shape[-1])
    train_ND, val_MD = (described(images if images.shape[-1] == side else
                                  F.interpolate(images, side, mode="bilinear", antialias=True))
                        for images in (train_NCHW, val_MCHW))
    alike_M = torch.cat([torch.stack([(part @ other.T).amax(1) for other in train_ND.split(SAMPLE)]).amax(0)
                         for part in val_MD.split(CHUNK)])
    return (alike_M > SAME).nonzero().flatten().tolist()


def described(images_NCHW: Tensor, side: int = SIDE) -> Tensor:
    """Each image's pixels at `side` x `side` less their channel's mean: [N,F] of length 1; 0 where it is of one colour."""
    at_once = max(1, PIXELS // images_NCHW[0].numel())
    small_NCSS = torch.cat([F.adaptive_avg_pool2d(part.float(), side) for part in images_NCHW.split(at_once)])
    small_ND = (small_NCSS - small_NCSS.mean((2, 3), keepdim=True)).flatten(1)
    return F.normalize(small_ND, dim=1) * (small_ND.std(1, keepdim=True) > FLAT)


def _joined(ids: Sequence[int], labels: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The groups after those of each pair have become one; in a class where that makes one of over half, those before."""
    parent = {number: number for number in ids}

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for a, b in pairs:
        parent[root(ids[a])] = root(ids[b])
    joined = [root(number) for number in ids]
    sizes, per_class = Counter(joined), Counter(labels)
    alike = {label for label, number, old in zip(labels, joined, ids, strict=True)
             if number != old and sizes[number] > LARGEST * per_class[label]}
    return [old if label in alike else number for label, number, old in zip(labels, joined, ids, strict=True)]


def group_halves(offered: Sequence[Sequence[int]], ids: Sequence[int],
                 classes: Sequence[str] | None = None) -> tuple[list[int], list[int]]:
    """(images that train, images that validate), both sorted: halves of each class made of whole groups.

    Args:
        offered: for each class its images, in the order in which their groups are given to the half that validates. Then
            groups change sides as long as that brings the classes nearer to half (rounded down), and then as long as a
            class without images on one side gets some. Without groups the first half of each class validates.
        ids: of Groups.
        classes: their names, for the sentence.

    Raises:
        UserError: a class gets no image on one side, such as one whose images are one group.
    """
    class_of = {image: label for label, images in enumerate(offered) for image in images}
    members: dict[int, list[int]] = {}
    for image in class_of:
        members.setdefault(ids[image], []).append(image)
    counts = {number: Counter(class_of[image] for image in images) for number, images in members.items()}
    half = [len(images) // 2 for images in offered]
    room = list(half)  # what each class lacks of it
    validates: set[int] = set()

    def badness(label: int, lacks: int, one_sided: float) -> float:
        """Of a class: its distance from half, in halves, and `one_sided` if all its images are on one side."""
        alone = half[label] - lacks in (0, len(offered[label]))
        return abs(lacks) / max(1, half[label]) + one_sided * alone

    def gain(number: int, sign: int, one_sided: float) -> float:
        """By how much less bad the classes are after the group has changed sides."""
        return sum(badness(label, room[label], one_sided) - badness(label, room[label] - sign * count, one_sided)
                   for label, count in counts[number].items())

    for one_sided in (0.0, ONE_SIDED):  # the second time moves what leaves a class without a side
        changed = True
        while changed:
            changed = False
            for number in counts:
                sign = -1 if number in validates else 1
                if gain(number, sign, one_sided) > 1e-9:
                    validates ^= {number}
                    for label, count in counts[number].items():
                        room[label] -= sign * count
                    changed = True
    val = {image for number in validates for image in members[number]}
    train = set(class_of) - val
    for label, images in enumerate(offered):
        if images and (val.isdisjoint(images) or train.isdisjoint(images)):
            name = f"the class {classes[label]!r}" if classes else "the data"
            raise UserError(f"the {len({ids[image] for image in images})} groups of {name} ({len(images)} images) do not "
                            "make two halves; give a finer --groups expression, --groups none, or other images to "
                            "--val-data")
    return (sorted(train), sorted(val)) if len(train) >= len(val) else (sorted(val), sorted(train))


def leak_found(train_NF: Tensor, val_MF: Tensor, train_labels_N: Tensor, val_labels_M: Tensor,
               target: bool = False) -> str | None:
    """Whether images that validate have siblings among those that train.

    For each validation image the distances to the training images of its class are sorted and divided by what Renyi's
    spacings expect of each rank. If images were drawn one by one, they then grow more slowly among the eight nearest than
    beyond. Faster growth there means that the nearest are siblings. Classes of fewer than twelve training images are left
    out.

    Args:
        train_NF, val_MF: a network's features of the images; they are whitened here.
        target: the user has given the images that validate, which are no half.

    Returns:
        One sentence with the remedy, or None.
    """
    centred_NF, whitening_FK = train_NF.float() - train_NF.float().mean(0), _whitening(train_NF)
    near, far, ratios = [], [], []
    for distances_VN, _ in _distances(centred_NF @ whitening_FK, (val_MF.float() - train_NF.float().mean(0)) @ whitening_FK,
                                      train_labels_N, val_labels_M):
        expected = (1 / torch.arange(1, distances_VN.shape[1])).cumsum(0)
        first, eighth, last = distances_VN[:, 0], distances_VN[:, NEIGHBOURS - 1], distances_VN[:, -1]
        near.append((eighth / first).log() / expected[NEIGHBOURS - 2])
        far.append((last / eighth).log() / (expected[-1] - expected[NEIGHBOURS - 2]))
        ratios.append(first / eighth)
    if not ratios or not torch.cat(near).median() > torch.cat(far).median():
        return None
    return _sentence(torch.cat(ratios), target)


def leak_found_in_pixels(train_NCHW: Tensor, val_MCHW: Tensor, train_labels_N: Tensor, val_labels_M: Tensor,
                         target: bool = False) -> str | None:
    """`leak_found` by the images' pixels. It sees siblings that look the same.

    There is a leak if for a quarter of the validation images the nearest training image of the class is at half of the
    eighth's distance, and validation images are as near to training images as those are to each other (halves of whole
    groups keep them farther).
    """
    ratios, val_nearest, train_nearest = [], [], []
    for distances_VN, nearest_N in _distances(described(train_NCHW, LEAK_SIDE), described(val_MCHW, LEAK_SIDE),
                                              train_labels_N, val_labels_M):
        ratios.append(distances_VN[:, 0] / distances_VN[:, NEIGHBOURS - 1])
        val_nearest.append(distances_VN[:, 0])
        train_nearest.append(nearest_N)
    if not ratios or torch.cat(ratios).quantile(0.25) > SIBLING \
            or torch.cat(val_nearest).median() > FARTHER * torch.cat(train_nearest).median():
        return None
    return _sentence(torch.cat(ratios), target)


def _whitening(features_NF: Tensor) -> Tensor:
    """[F,K]: onto the features' principal directions, each brought to about the same standard deviation."""
    variances_F, directions_FF = torch.linalg.eigh(torch.cov(features_NF.float().T))
    deviations_F = variances_F.clamp_min(0).sqrt()
    used = deviations_F > deviations_F.max() / 100
    return directions_FF[:, used] / (deviations_F[used] + deviations_F[used].mean() / 10)


def _distances(train_NF: Tensor, val_MF: Tensor, train_labels_N: Tensor,
               val_labels_M: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each class of enough images: the distances of its validation images to its training images, in order [V,N], and
    of the latter to their nearest [N]; of directions, as the features are brought to length 1."""
    train_NF, val_MF = F.normalize(train_NF, dim=1), F.normalize(val_MF, dim=1)
    for label in train_labels_N.unique():
        train, val = train_NF[train_labels_N == label], val_MF[val_labels_M == label]
        if len(train) >= ENOUGH and len(val):
            nearest_N = torch.cat([torch.cdist(part, train).topk(2, largest=False).values[:, 1]  # behind the image itself
                                   for part in train.split(CHUNK)])
            yield torch.cdist(val, train).clamp_min(1e-6).sort(1).values, nearest_N


def _sentence(ratios_M: Tensor, target: bool = False) -> str:
    where, remedy = ("both among the training images and in --val-data", "give other images to validate on") if target else \
        ("in both halves", "keep them on one side by --groups with an expression that matches what their names share, or by "
         "another --val-data")
    return (f"images that belong together, such as frames of one video, seem to stand {where}: a quarter of the validation "
            f"images have a training image at {ratios_M.quantile(0.25).item():.2f} of the distance of their {NEIGHBOURS}th "
            f"nearest or less, and a search then undervalues augmentation; {remedy}")
