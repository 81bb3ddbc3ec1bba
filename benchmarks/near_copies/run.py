"""Which likeness tells near copies of a picture from other pictures of its data set, and at which threshold?

    python -m benchmarks.near_copies.run    # about 5 minutes, one thread; then python -m benchmarks.near_copies.page

Copies are made of real pictures before they are prepared for the network. For each likeness: the highest one that every
original has with another picture of its set, and the one that every copy has with its original.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets import DataMissing, FileData, cifar10, fashion_mnist, few_shot, plankton, traffic_lights
from benchmarks.record import Row, fill
from benchmarks.study import begin, study_parser
from tangentune import Backbone, TangentClassifier, load_backbone, load_pictures
from tangentune.pictures.copies import sketches

NAME, SIZE = "near_copies", 96
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


def likenesses(backbone: Backbone, known: Any, copies: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Every likeness: (n, n) among the originals, (m, n) of copies with them."""
    found = {}
    for name, vectors in {
        "small picture, 16 x 16": sketches,
        "small picture, 8 x 8": lambda pixels: small_pictures(pixels, 8),
        "difference hash": difference_hash,
    }.items():
        one, other = vectors(known.pixels), vectors(copies)
        found[name] = one @ one.T, other @ one.T
    clf = TangentClassifier(backbone).fit(known)
    parts = list(clf.kernel_to_training(copies.numpy()))
    kernel, own = torch.cat([part.kernel for part in parts]), torch.cat([part.own for part in parts])
    among = torch.from_numpy(clf.kernel_)
    lengths = among.diagonal().sqrt()
    found["kernel"] = among / lengths / lengths[:, None], kernel / lengths / own.sqrt()[:, None]
    loaded = [load_pictures(p.numpy(), contract=backbone.contract, need_labels=False) for p in (known.pixels, copies)]
    one, other = (
        torch.cat([F.normalize(backbone.features(x), dim=1) for x in p.batches(backbone.contract)]) for p in loaded
    )
    found["features"] = one @ one.T, other @ one.T
    return found


def originals(dataset: str) -> tuple[list[Picture], NDArray[Any]]:
    """At most 500 pictures of a set, and their labels."""
    if dataset in ("traffic lights", "plankton"):
        files: FileData = traffic_lights() if dataset == "traffic lights" else plankton()
        step = -(-len(files.paths) // 400)
        return [Image.open(path).convert("RGB") for path in files.paths[::step]], files.labels[::step]
    data = cifar10() if dataset == "CIFAR-10" else fashion_mnist()
    kept = few_shot(data.train_labels, 50, seed=0)
    return [Image.fromarray(data.train[i]).convert("RGB") for i in kept], data.train_labels[kept]


def measure(key: Row) -> Row:
    """Likenesses of one data set."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures, labels = originals(key["dataset"])
    known = load_pictures(pictures, labels, contract=backbone.contract)
    chosen = list(range(0, len(pictures), -(-len(pictures) // 100)))
    changed = [change(pictures[i]) for change in CHANGES.values() for i in chosen]
    copies = load_pictures(changed, contract=backbone.contract, need_labels=False).pixels
    own = torch.tensor(chosen * len(CHANGES))
    out: Row = {"pictures": len(pictures), "changed": len(chosen), "methods": {}}
    for name, (among, with_copies) in likenesses(backbone, known, copies).items():
        others = among.clone().fill_diagonal_(-1).amax(1)
        mine = with_copies[torch.arange(len(own)), own].view(len(CHANGES), -1)
        out["methods"][name] = {
            "others": others.double().sort().values.tolist(),
            "copies": {change: row.double().sort().values.tolist() for change, row in zip(CHANGES, mine, strict=True)},
        }
    return out


def main() -> None:
    """docs/results/near_copies.json."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore")
    for dataset in ("CIFAR-10", "fashion", "traffic lights", "plankton"):
        try:
            fill(NAME, [{"dataset": dataset}], measure)
        except DataMissing as error:
            print(f"skipped {dataset}: {error}")


if __name__ == "__main__":
    main()
