"""Compare methods on the same pictures: every method, number of pictures a class and seed, scored alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from tqdm.auto import tqdm

from tangentune.comparison.measure import Bench, class_labels
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.comparison.plan import Shots, plan_cells
from tangentune.comparison.splits import split_test
from tangentune.comparison.store import as_document, prepare_folder, read_cells, write_cells
from tangentune.comparison.summary import Cell, Row, summarise_cells
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import load_pictures

_BAR = "{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{remaining}]"


@final
@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        settings: what all cells have in common: backbone, pictures, test part, machine.
        cells: every measurement, in the order in which they were made.
        rows: means over seeds, one row a method and number of pictures a class.
    """

    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """All of it in plain numbers, text, lists and dicts, for JSON."""
        return as_document(self.settings, self.cells, self.rows)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CompareSettings:
    """How methods are compared.

    Attributes:
        backbone: a name or a `Backbone`.
        methods: names in `tangentune.comparison.methods.METHODS`.
        shots: pictures a class; "all" takes every picture that is not for the test.
        seeds: how many (0, 1, ...), or which.
        test: labelled pictures for the test, as `pictures`; None keeps a share of `pictures`.
        test_share: that share of each class.
        out: a folder where `comparison.json` is written after every cell. Run again with the same folder and
            settings, only cells without a result are measured, and cells of other methods, numbers and
            seeds join them.
        flip: a mirrored picture shows the same class, and methods may use that.
        input_size: overrides the backbone's picture size.
        batch_size: pictures that go through the network at a time.
        device: "cpu", "cuda", ...; None leaves the backbone where it is.
        n_jobs: processes that decode picture files.
        on_error: "raise" or "skip", at a picture that cannot be read.
        verbose: 1 shows a progress bar over the cells with the time left.
    """

    backbone: str | Backbone = "mobilenet_v2"
    methods: Sequence[str] = tuple(METHODS)
    shots: Sequence[Shots] = (5, 10, 50)
    seeds: int | Sequence[int] = 3
    test: Any = None
    test_share: float = 0.3
    out: str | os.PathLike[str] | None = None
    flip: bool = True
    input_size: int | tuple[int, int] | None = None
    batch_size: int = 32
    device: str | torch.device | None = None
    n_jobs: int | None = None
    on_error: str = "raise"
    verbose: int = 0

    def bench(self, pictures: Any) -> Bench:
        """The network and both parts of the pictures, read."""
        network = load_backbone(self.backbone) if isinstance(self.backbone, str) else self.backbone
        network = network.with_size(self.input_size)
        network = network if self.device is None else network.to(self.device)
        contract = network.contract
        reading: dict[str, Any] = {"on_error": self.on_error, "n_jobs": self.n_jobs, "verbose": self.verbose}
        train = load_pictures(pictures, contract=contract, **reading)
        if self.test is None:
            rows, kept = split_test(class_labels(train), self.test_share)
            train, test = train.select(rows), train.select(kept)
        else:
            test = load_pictures(self.test, contract=contract, **reading)
        told = MethodSettings(flip=self.flip and contract.input_size is not None, batch_size=self.batch_size)
        return Bench(network, train, test, told)


def compare(pictures: Any, **settings: Any) -> Comparison:
    """Fit every method to the same small draws of pictures and score it on the same test pictures.

    The test part is the same for all cells. From the rest, each seed draws its pictures class by class, the
    smaller draws inside the larger ones. A class with fewer pictures than asked for gives all it has.

    Seconds and memory are those of the fit with all its choices (rates, damping), in this process, one cell
    after another; the peak of memory is reset before each, so it includes the interpreter and the pictures.

    Args:
        pictures: whatever `load_pictures` takes, with class labels.
        settings: `backbone`, `methods`, `shots`, `seeds`, `test`, `out`, ... by the names of `CompareSettings`.

    Returns:
        All cells of the folder with their means. A cell that could not be measured holds the reason.

    Raises:
        InputError: an argument is wrong, or the pictures or their labels cannot be used.
        StoreError: the folder cannot be used, or holds a comparison with other settings.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from tangentune import Pictures
        >>> rng = np.random.default_rng(0)
        >>> x = torch.from_numpy(rng.normal(size=(60, 4)).astype("float32"))
        >>> labels = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")
        >>> made_up = Pictures(x, labels, [str(i) for i in range(60)])
        >>> network = Backbone(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)))
        >>> result = compare(made_up, backbone=network, methods=["probe"], shots=[5], seeds=2)
        >>> [(row.method, row.shots, row.n, row.seeds) for row in result.rows]
        [('probe', 5, 10, (0, 1))]
    """
    asked = CompareSettings(**settings)
    plan = plan_cells(asked.methods, asked.shots, asked.seeds)
    folder = None if asked.out is None else prepare_folder(asked.out)
    bench = asked.bench(pictures)
    common = bench.describe(None if asked.test is not None else asked.test_share)
    cells = [] if folder is None else read_cells(folder, common)
    done = {cell.key for cell in cells if cell.failed is None}
    todo = [key for key in plan if key not in done]
    order = list(dict.fromkeys([*(key[0] for key in plan), *METHODS]))
    sizes = [bench.size(key[1]) for key in todo]  # the time left is foretold by pictures, not by cells
    with tqdm(total=sum(sizes), bar_format=_BAR, delay=1.0, disable=not asked.verbose) as bar:
        if todo:
            bench.warm_up({key[0] for key in todo})
        for i, (key, size) in enumerate(zip(todo, sizes, strict=True)):
            bar.set_description_str(f"cell {i + 1} of {len(todo)}: {key[0]}, {key[1]} a class, seed {key[2]}")
            cell = bench.measure(*key)
            cells = [*(old for old in cells if old.key != key), cell]
            if folder is not None:
                write_cells(folder, common, cells, summarise_cells(cells, order, len(bench.test)))
            bar.update(size)
    return Comparison(common, tuple(cells), summarise_cells(cells, order, len(bench.test)))
