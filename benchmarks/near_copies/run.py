"""Which likeness tells near copies of a picture from other pictures of its data set, and at which threshold?

    python -m benchmarks.near_copies.run    # about 4 minutes, one thread; then python -m benchmarks.near_copies.page

Copies are made of real pictures before they are prepared for the network. Counted are the copies that are as like their
original, and the originals that are as like another picture of their draw, as a threshold asks for.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets import DataMissing, cifar10, fashion_mnist, few_shot, plankton, traffic_lights
from benchmarks.record import Row, fill
from benchmarks.study import begin, mean_features, study_parser
from tangentune import Backbone, load_backbone, load_pictures
from tangentune.pictures.copies import sketches

NAME, SIZE, MOST, CHANGED = "near_copies", 64, 400, 60
REPORTED, CHOOSING = 0, 100  # seeds of the draws; the halves of the sets of files
OURS = "small picture, 16 x 16"
TRIED = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995)  # thresholds of ours
Picture = Image.Image


def as_jpeg(quality: int) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return change


def cropped(share: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        x, y = (max(1, round(share * side)) for side in picture.size)
        return picture.crop((x, y, picture.width - x, picture.height - y))

    return change


def noisy(picture: Picture) -> Picture:
    values = np.asarray(picture) + np.random.default_rng(0).normal(0, 8, np.asarray(picture).shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG, quality 75": as_jpeg(75),
    "JPEG, quality 30": as_jpeg(30),
    "half the size": lambda p: p.resize((max(1, p.width // 2), max(1, p.height // 2)), Image.Resampling.BICUBIC),
    "a fifth darker": lambda p: ImageEnhance.Brightness(p).enhance(0.8),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.8),
    "noise of 8 levels": noisy,
    "grey": lambda p: p.convert("L").convert("RGB"),
    "3 % cut off each side": cropped(0.03),
    "8 % cut off each side": cropped(0.08),
}


def small_pictures(pixels: Tensor, side: int) -> Tensor:
    """Centred small pictures of length one, as `sketches` makes them at its own side."""
    small = F.adaptive_avg_pool2d(pixels.float(), (side, side)).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def difference_hash(pixels: Tensor) -> Tensor:
    """64 signs of differences between neighbours of a grey 9 x 8 picture, of length one."""
    grey = F.adaptive_avg_pool2d(pixels.float().mean(1, keepdim=True), (8, 9))
    return torch.where(grey.diff(dim=3) > 0, 1.0, -1.0).flatten(1) / 8


def likenesses(backbone: Backbone, pixels: Tensor, copies: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Every likeness: (n, n) among the originals, (m, n) of copies with them."""
    ways: dict[str, Callable[[Tensor], Tensor]] = {OURS: sketches}
    ways |= {f"small picture, {side} x {side}": partial(small_pictures, side=side) for side in (8, 32)}
    ways |= {"difference hash": difference_hash, "features": partial(unit_features, backbone)}
    found = {name: (vectors(pixels), vectors(copies)) for name, vectors in ways.items()}
    return {name: (one @ one.T, other @ one.T) for name, (one, other) in found.items()}


def unit_features(backbone: Backbone, pixels: Tensor) -> Tensor:
    """The network's features, of length one."""
    pictures = load_pictures(pixels.numpy(), contract=backbone.contract, need_labels=False)
    return F.normalize(mean_features(backbone, pictures, flip=False), dim=1)


def originals(dataset: str, seed: int) -> list[Picture]:
    """At most MOST pictures of a set: of files every other one, of arrays as many of each class."""
    if dataset in ("traffic lights", "plankton"):
        files = traffic_lights() if dataset == "traffic lights" else plankton()
        order = np.random.default_rng(0).permutation(len(files.paths))[seed > 0 :: 2][:MOST]
        return [Image.open(files.paths[i]).convert("RGB") for i in order]
    data = cifar10() if dataset == "CIFAR-10" else fashion_mnist()
    return [Image.fromarray(data.train[i]).convert("RGB") for i in few_shot(data.train_labels, MOST // 10, seed)]


def measure(key: Row) -> Row:
    """Copies that every likeness finds where it tells at most 1 % of the others, and what ours tells by threshold."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures = originals(**key)
    pixels = load_pictures(pictures, contract=backbone.contract, need_labels=False).pixels
    chosen = list(range(0, len(pictures), -(-len(pictures) // CHANGED)))
    changed = [change(pictures[i]) for change in CHANGES.values() for i in chosen]
    copies = load_pictures(changed, contract=backbone.contract, need_labels=False).pixels
    own, found, told = torch.tensor(chosen * len(CHANGES)), {}, {}
    for name, (among, with_copies) in likenesses(backbone, pixels, copies).items():
        others = among.double().fill_diagonal_(-1).amax(1).round(decimals=4)
        mine = with_copies[torch.arange(len(own)), own].double().round(decimals=4).view(len(CHANGES), -1)
        found[name] = int((mine > others.quantile(0.99, interpolation="higher")).sum())
        if name == OURS:
            kinds = {"others": others} | dict(zip(CHANGES, mine, strict=True))
            told = {kind: [int((row >= threshold).sum()) for threshold in TRIED] for kind, row in kinds.items()}
    return {"pictures": len(pictures), "changed": len(chosen), "found_at_one_percent": found, "told": told}


def main() -> None:
    """docs/results/near_copies.json."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore")
    for dataset, seed in product(("CIFAR-10", "Fashion-MNIST", "traffic lights", "plankton"), (REPORTED, CHOOSING)):
        try:
            fill(NAME, [{"dataset": dataset, "seed": seed}], measure)
        except DataMissing as error:
            print(f"skipped {dataset}: {error}")


if __name__ == "__main__":
    main()
