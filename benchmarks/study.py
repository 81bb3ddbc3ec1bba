"""What the studies share: the command line, clocks, scores, and means with their spread."""

from __future__ import annotations

import argparse
import math
import re
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import record
from tangentune import Backbone, Pictures, TangentClassifier
from tangentune.solvers.metrics import accuracy, nll

SCRATCH = record.ROOT / ".cache" / "scratch"
# What every fit did when most studies were made; the defaults came later (docs/decisions/0018).
STILL: dict[str, Any] = {"augment": None, "outer_steps": 0}


def study_parser(description: str | None, *, runs: int | None = None) -> argparse.ArgumentParser:
    """A parser with the options that every study has; `runs` is the default number of measurements of a figure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "a trial: results go to this folder (.cache/scratch), whatever the state of the code"
    parser.add_argument("--scratch", type=Path, nargs="?", const=SCRATCH, metavar="FOLDER", help=words)
    parser.add_argument("--again", action="store_true", help="also measure again what uncommitted code has measured")
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help="measurements of each figure")
    return parser


def begin(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line of a study that measures: one thread, fixed random numbers, a clean tree or --scratch."""
    given = parser.parse_args()
    record.RESULTS, record.AGAIN = given.scratch or record.RESULTS, given.again
    record.check_clean()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return given


def publishing(publish: Callable[[], None], description: str | None) -> None:
    """The command line of a page, which measures nothing: only the folder of the results is set."""
    record.RESULTS = study_parser(description).parse_args().scratch or record.RESULTS
    publish()


def watched(command: Sequence[str]) -> tuple[str, int]:
    """What a command prints, and the highest resident bytes of its process, looked at from outside; on Linux.

    Raises:
        RuntimeError: it fails.
    """
    highest = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with suppress(OSError):
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                highest = max(highest, int(found[1]) * 1024 if found else 0)
            time.sleep(0.05)  # a high-water mark: only what the last moment adds can be missed
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        message = f"{' '.join(command)} failed"
        raise RuntimeError(message)
    return printed, highest


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Is filled with "seconds" and "cpu_seconds" at the end of the block."""
    spent: dict[str, float] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent.update(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)


def alternating(
    ways: Mapping[str, Callable[[], Any]], runs: int, *, warm_up: bool = True
) -> dict[str, list[dict[str, float]]]:
    """What each way took, `runs` times, in turn, so that a drift of the machine hits all alike."""
    for way in ways.values() if warm_up else ():
        way()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            with stopwatch() as spent:
                way()
            taken[name].append(spent)
    return taken


def waited(ways: Mapping[str, Callable[[], Any]], device: str | torch.device) -> Mapping[str, Callable[[], Any]]:
    """The same ways, each until the device has done what it was given; accelerators work on after a call returns."""
    if torch.device(device).type != "cuda":
        return ways

    def until_done(way: Callable[[], Any]) -> None:
        way()
        torch.cuda.synchronize(device)

    return {name: partial(until_done, way) for name, way in ways.items()}


def medians(taken: Mapping[str, Sequence[Mapping[str, float]]], clock: str = "seconds") -> dict[str, float]:
    """Median of each way, from `alternating`."""
    return {name: statistics.median(spent[clock] for spent in own) for name, own in taken.items()}


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's remarks on the data (duplicate pictures, classes of one picture)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def labels_of(pictures: Pictures) -> NDArray[Any]:
    """(n,) labels of pictures that have some."""
    assert pictures.labels is not None
    return pictures.labels


def network_inputs(backbone: Backbone, pictures: Pictures, batch: int = 64) -> Iterator[Tensor]:
    """Normalised pictures as the network takes them, channels last."""
    for x in pictures.batches(backbone.contract, batch, backbone.dtype, backbone.device):
        yield x.contiguous(memory_format=torch.channels_last)


def mean_features(backbone: Backbone, pictures: Pictures, flip: bool) -> Tensor:
    """(n, d) features; `flip` averages those of each picture and its mirror image."""
    out = []
    for x in network_inputs(backbone, pictures):
        own = backbone.features(x)
        out.append((own + backbone.features(x.flip(-1))) / 2 if flip else own)
    return torch.cat(out)


def scores(proba: Tensor, classes: NDArray[Any], test: Pictures) -> dict[str, float]:
    """Accuracy and negative log-likelihood of probabilities (n, C), in the order of the sorted classes."""
    labels = np.searchsorted(classes, labels_of(test))
    return {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba.double())}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; NaN for one value.

    Example:
        >>> standard_error([1.0, 3.0])
        1.0
    """
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def mean_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and standard deviation where there are two values or more, as text; "-" for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def mean_each(values: Sequence[float]) -> str:
    """Mean, and every value behind it, as text."""
    return f"{statistics.fmean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def mean_error(values: Sequence[float], spec: str = ".3f") -> str:
    """Mean, and its standard error where there are two values or more, as text; `spec` is the mean's format."""
    mean = format(statistics.fmean(values), spec)
    return mean if len(values) < 2 else f"{mean} ± {format(standard_error(values), spec.removeprefix('+'))}"


def solved(kernel: Tensor, targets: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Dual coefficients (n, C) and intercept (C,) of kernel ridge regression, by one dense solve: nobody's closed form.

    The bordered system `[[K + damping I, 1], [1, 0]] [c; b] = [Y; 0]`, all weights one.
    """
    n = len(kernel)
    matrix = torch.ones(n + 1, n + 1, dtype=torch.float64)
    matrix[:n, :n] = kernel + damping * torch.eye(n, dtype=torch.float64)
    matrix[n, n] = 0
    solution = torch.linalg.solve(matrix, torch.cat([targets, torch.zeros_like(targets[:1])]))
    return solution[:n], solution[n]


def cross_kernel(model: TangentClassifier, test: Pictures) -> Tensor:
    """(m, n) kernel of new pictures with the training pictures, from `contributions` = k(x, x_i) c_i."""
    out, dual = [], model.dual_coef_
    for start in range(0, len(test), 250):
        shares = model.contributions(replace(test.select(slice(start, start + 250)), labels=None))
        out.append((shares * dual).sum(2) / np.square(dual).sum(1))
    return torch.from_numpy(np.concatenate(out))
