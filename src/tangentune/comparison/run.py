"""Compare methods on the same pictures: every method, number of pictures a class and seed, scored alike."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tangentune._torch import usual_torch
from tangentune.comparison.measure import Bench, class_labels, split_test
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.comparison.plan import Shots, plan_cells
from tangentune.comparison.store import Comparison, prepare_folder, read_cells, write_comparison
from tangentune.comparison.summary import summarise_cells
from tangentune.estimators.user_input import as_classes, read_count
from tangentune.networks.backbone import AnyBackbone, as_backbone, usable_device
from tangentune.pictures.checks import look_alikes
from tangentune.pictures.load import load_pictures

_BAR = "{desc} |{bar}| {percentage:3.0f} % [{elapsed}<{remaining}]"


@usual_torch
def compare(
    pictures: Any,
    *,
    backbone: AnyBackbone = "mobilenet_v2",
    methods: Sequence[str] = tuple(METHODS),
    shots: Sequence[Shots] = (5, 10, 50),
    seeds: int | Sequence[int] = 3,
    test: Any = None,
    test_share: float = 0.3,
    out: str | os.PathLike[str] | None = None,
    flip: bool = True,
    input_size: int | tuple[int, ...] | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    n_jobs: int | None = None,
    on_error: str = "raise",
    path_column: str | None = None,
    label_column: str | None = None,
    verbose: int = 0,
) -> Comparison:
    """Fit every method to the same small draws of pictures and score it on the same test pictures.

    The test part is the same for all cells. From the rest, each seed draws its pictures class by class, the
    smaller draws inside the larger ones. A class with fewer pictures than asked for gives all it has.

    Seconds and memory are those of the fit with all its choices (rates, damping), in this process, one cell
    after another; the peak of memory is reset before each, so it includes the interpreter and the pictures.

    Args:
        pictures: whatever `load_pictures` takes, with class labels.
        backbone: a name, a `Backbone`, or a network, as `Backbone(network)` wraps it.
        methods: names in `tangentune.comparison.methods.METHODS`.
        shots: pictures a class; "all" takes every picture that is not for the test.
        seeds: how many (0, 1, ...), or which.
        test: labelled pictures for the test, as `pictures`; None keeps a share of `pictures`.
        test_share: that share of each class.
        out: a folder where `comparison.json` is written after every cell. Run again with the same folder and settings,
            only cells without a result are measured, and cells of other methods, numbers and seeds join them.
        flip: a mirrored picture shows the same class, and methods may use that.
        input_size: overrides the backbone's picture size.
        batch_size: pictures that go through the network at a time.
        device: "cpu", "cuda", ..., or "auto", a GPU where there is one; None leaves the backbone where it is.
        n_jobs: processes that decode picture files.
        on_error: "raise" or "skip", at a picture that cannot be read.
        path_column: the column of a table that holds the pictures, where its name does not say so.
        label_column: the column that holds the labels.
        verbose: 1 shows a progress bar over the cells with the time left.

    Returns:
        All cells of the folder with their means. A cell that could not be measured holds the reason.

    Raises:
        InputError: an argument is wrong, or the pictures or their labels cannot be used.
        StoreError: the folder cannot be used, or holds a comparison with other settings.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from tangentune import Backbone, Pictures
        >>> rng = np.random.default_rng(0)
        >>> x = torch.from_numpy(rng.normal(size=(60, 4)).astype("float32"))
        >>> labels = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")
        >>> made_up = Pictures(x, labels, [str(i) for i in range(60)])
        >>> network = Backbone(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)))
        >>> result = compare(made_up, backbone=network, methods=["probe"], shots=[5], seeds=2)
        >>> [(row.method, row.shots, row.n, row.seeds) for row in result.rows]
        [('probe', 5, 10, (0, 1))]
    """
    plan, batch_size = plan_cells(methods, shots, seeds), read_count({"batch_size": batch_size}, "batch_size")
    folder = None if out is None else prepare_folder(out)
    if device is not None:
        usable_device(device)  # before the network is loaded
    network = as_backbone(backbone, input_size, device)
    reading: dict[str, Any] = {"on_error": on_error, "n_jobs": n_jobs, "verbose": verbose}
    reading |= {"path_column": path_column, "label_column": label_column}
    train = load_pictures(pictures, contract=network.contract, **reading)
    if test is None:
        rows, kept = split_test(class_labels(train), test_share)
        train, held_out = train.select(rows), train.select(kept)
    else:
        held_out = load_pictures(test, contract=network.contract, **reading)
        held_out = held_out.relabelled(as_classes(class_labels(held_out), np.unique(class_labels(train))))
    for sentence in look_alikes(train.labels):
        warnings.warn(sentence, stacklevel=3)
    told = MethodSettings(flip=flip and network.contract.input_size is not None, batch_size=batch_size)
    bench = Bench(network, train, held_out, told)
    common = bench.describe(None if test is not None else test_share)
    cells = [] if folder is None else read_cells(folder, common)
    done = {cell.key for cell in cells if cell.failed is None}
    todo = [key for key in plan if key not in done]
    order = list(dict.fromkeys([*(key[0] for key in plan), *METHODS]))
    found = Comparison(common, tuple(cells), summarise_cells(cells, order, len(held_out)))
    sizes = [bench.size(key[1]) for key in todo]  # the time left is foretold by pictures, not by cells
    with tqdm(total=sum(sizes), bar_format=_BAR, delay=1.0, disable=not verbose) as bar:
        if todo:
            bench.warm_up({key[0] for key in todo})
        for i, (key, size) in enumerate(zip(todo, sizes, strict=True)):
            bar.set_description_str(f"cell {i + 1} of {len(todo)}: {key[0]}, {key[1]} a class, seed {key[2]}")
            cells = [*(old for old in found.cells if old.key != key), bench.measure(*key)]
            found = Comparison(common, tuple(cells), summarise_cells(cells, order, len(held_out)))
            if folder is not None:
                write_comparison(folder, found)
            bar.update(size)
    return found
