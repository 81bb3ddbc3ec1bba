"""What a GPU makes of the library: rows, Grams, whole fits and edits, against its own matrix product and training step.

    python -m benchmarks.gpu.run                                  # about ten minutes; docs/results/gpu.json
    python -m benchmarks.gpu.run --device cpu --few --scratch     # on few pictures: whether the script itself works

The pictures are made up: rates do not depend on what they show. Nothing else is needed, and nothing is fetched.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from benchmarks.speed.run import gram_speed, row_ways
from benchmarks.study import STILL, alternating, begin, labels_of, medians, stopwatch, study_parser, waited
from tangentune import Pictures, TangentClassifier, load_backbone
from tangentune.errors import InputError

NAME, CLASSES = "gpu", 10
LONGEST = 420  # seconds of the script after which no further fit begins
NO_GPU = (
    "there is no CUDA device here, so that nothing is measured; --device cpu --few --scratch tries the script itself"
)


def main() -> None:
    """Run, print, write docs/results/gpu.json; where there is no GPU, a sentence."""
    parser = study_parser(__doc__, runs=5)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...")
    parser.add_argument("--few", action="store_true", help="few small pictures")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        return
    given = begin(parser)
    warnings.simplefilter("ignore")
    size, batch, large = (32, 8, 256) if given.few else (96, 128, 8192)
    started = time.perf_counter()
    found: dict[str, Any] = {"card": card(device, large, given.runs), "size": size, "batch": batch}
    found["rows"] = rows(device, size, batch, given.runs)
    found["gram"] = gram_speed(given.runs, 32 if given.few else 500, device)
    found["fits"] = []
    for count in (100, 200) if given.few else (500, 5000, 50_000):
        if time.perf_counter() - started > LONGEST:
            print(f"no time is left for a fit of {count:,} pictures")
            break
        found["fits"].append(fit(device, count, size, batch))
        print(json.dumps(found["fits"][-1]), flush=True)
        found["seconds"] = time.perf_counter() - started
        record(NAME, found)  # what has been measured stays, whatever becomes of the next
    print(json.dumps(found, indent=1))


def card(device: torch.device, size: int, runs: int) -> dict[str, Any]:
    """Name, memory, and GFLOP/s of a matrix product in both precisions and of a Cholesky factorisation."""
    a = torch.randn(size, size, device=device)
    b = a.double()
    spread = b @ b.T / size + torch.eye(size, dtype=b.dtype, device=device)
    ways = {"float32": lambda: a @ a, "float64": lambda: b @ b, "cholesky64": lambda: torch.linalg.cholesky(spread)}
    seconds = medians(alternating(waited(ways, device), runs))
    work = {"float32": 2.0, "float64": 2.0, "cholesky64": 1 / 3}
    out: dict[str, Any] = {f"{name}_gflops": work[name] * size**3 / seconds[name] / 1e9 for name in ways}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        out |= {"name": about.name, "gibibytes": about.total_memory / 2**30}
    return out


def rows(device: torch.device, size: int, batch: int, runs: int) -> dict[str, float]:
    """Pictures a second: a training step, our rows, also under autocast, and `vmap(grad)`, channels last."""
    x = torch.randn(batch, 3, size, size, device=device)
    ways = row_ways(x, torch.channels_last)
    with suppress(InputError):  # a card without bfloat16
        ways["rows_autocast"] = row_ways(x, torch.channels_last, "bfloat16")["rows"]
    seconds = medians(alternating(waited(ways, device), runs))
    rates = {f"{name}_a_second": batch / spent for name, spent in seconds.items()}
    return rates | {"rows_to_forward_backward": seconds["rows"] / seconds["forward_backward"]}


def made_up(count: int, size: int) -> Pictures:
    """Noise, each class a little brighter in a channel and quarter of its own."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 200, (count, 3, size, size), dtype=np.uint8), np.arange(count) % CLASSES
    half = size // 2
    for label in range(CLASSES):
        top, left = half * (label // 2 % 2), half * (label % 2)
        pixels[label::CLASSES, label % 3, top : top + half, left : left + half] += 20
    return Pictures(torch.from_numpy(pixels), labels, [str(i) for i in range(count)])


def fit(device: torch.device, count: int, size: int, batch: int) -> dict[str, Any]:
    """A fit at the pre-trained weights, with everything chosen; then edits, and predictions."""
    backbone = load_backbone("mobilenet_v2").with_size(size).to(device)
    pictures = made_up(count, size)
    new = made_up(min(count, 1000), size)
    clf = TangentClassifier(backbone, batch_size=batch, **STILL)
    out: dict[str, Any] = {"pictures": count}

    def timed(name: str, work: Callable[[], Any]) -> None:
        with stopwatch() as spent:
            waited({name: work}, device)[name]()
        out[f"{name}_seconds"] = spent["seconds"]

    timed("fit", lambda: clf.fit(pictures))
    timed("first_prediction", lambda: clf.decision_function(new))
    timed("prediction", lambda: clf.decision_function(new))
    timed("leave_out", lambda: clf.leave_out(5))
    labels = labels_of(pictures)[:20]
    timed("first_forget_20", lambda: clf.forget(list(range(20))))  # pays for set-up
    timed("forget_20", lambda: clf.forget(list(range(20, 40))))
    timed("relabel_20", lambda: clf.relabel(list(range(40, 60)), labels[::-1]))
    timed("undo", clf.undo)
    report = clf.fit_report_
    out |= {"landmarks": len(clf.landmarks_), "passes": report["passes"], "peak_bytes": report["peak_bytes"]}
    return out | {"stages": report["stages"], "leave_one_out": clf.loo_score_}


if __name__ == "__main__":
    main()
