"""Speed of the row engine, the Gram assembly and a whole fit, on one thread, against what they must beat.

    python -m benchmarks.speed            # everything, about 15 minutes
    python -m benchmarks.speed --quick    # rows and Gram only, under a minute

Every ratio comes from one run on the same thread with alternating measurements; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call, grad, vmap

from benchmarks.datasets import DataMissing, cifar10, few_shot, held_out
from benchmarks.record import record
from tangentune import TangentClassifier, load_backbone, load_pictures
from tangentune.jacobian.layers import Pairs
from tangentune.jacobian.rows import batch_rows
from tangentune.jacobian.survey import survey
from tangentune.kernels.gram import gram, strategy
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune

SIZE = 96


def medians(functions: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each function, measured in turn so that a drift of the machine hits all alike."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rows_speed(batch: int = 32, runs: int = 5) -> dict[str, Any]:
    """Rows of one batch against forward + backward of the same batch (weight gradients and all) and `vmap(grad)`."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    x = torch.randn(batch, 3, SIZE, SIZE)
    out: dict[str, Any] = {"batch": batch}
    for layout, fmt in (("plain", torch.contiguous_format), ("channels_last", torch.channels_last)):
        module, inputs = backbone.module, x.contiguous(memory_format=fmt)
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=fmt)
        tangent = survey(module, backbone.feature_function, [n for n, _ in module.named_parameters()], inputs[:2])
        probe = torch.randn(1, backbone.features(inputs[:1]).shape[1])
        body = module.get_submodule("features")
        moving = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters() if n in tangent.names}

        def train_step(body=body, inputs=inputs, moving=moving, probe=probe) -> None:
            (functional_call(body, _inside(moving), (inputs,)).mean((2, 3)) @ probe[0]).sum().backward()
            for tensor in moving.values():
                tensor.grad = None

        def one(params, sample, body=body, probe=probe):
            return functional_call(body, _inside(params), (sample[None],)).mean((2, 3))[0] @ probe[0]

        frozen = {n: p.detach() for n, p in moving.items()}
        functions = {
            "forward_backward": train_step,
            "rows": lambda t=tangent, i=inputs, p=probe: batch_rows(t, [i], p),
            "vmap_grad": lambda f=frozen, i=inputs, g=one: vmap(grad(g), in_dims=(None, 0))(f, i),
        }
        with warm_pages():
            out[layout] = medians(functions, runs)
    fastest = min(out[layout]["forward_backward"] for layout in ("plain", "channels_last"))
    for layout in ("plain", "channels_last"):
        figures = out[layout]
        figures["rows_to_forward_backward"] = figures["rows"] / figures["forward_backward"]
        figures["vmap_grad_to_rows"] = figures["vmap_grad"] / figures["rows"]
    out["rows_to_fastest_forward_backward"] = out["channels_last"]["rows"] / fastest
    return out


def _inside(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names below `module.features`, which is called without the classifier behind it."""
    return {name.removeprefix("features."): tensor for name, tensor in params.items()}


def gram_speed(count: int = 500, runs: int = 5) -> dict[str, Any]:
    """Gram assembly of layers with the shapes of MobileNetV2 at 96 px, against one large matrix product.

    The rate counts the multiply-adds of the explicit symmetric product, n (n + 1) / 2 times the row width, whichever
    strategy is used: the work a user asks for.
    """
    shapes = ((9, 320, 1280), (9, 960, 320), (9, 160, 960), (9, 576, 160), (36, 96, 576), (36, 64, 384))
    a = torch.randn(count, 40_000)
    entries = {
        f"{i}->{o}, {t} positions": Pairs(torch.randn(count, t, i), torch.randn(count, t, 1, o)) for t, i, o in shapes
    }
    functions: dict[str, Callable[[], Any]] = {"gemm": lambda: a @ a.T}
    functions |= {name: (lambda entry=entry: gram(entry)) for name, entry in entries.items()}
    with warm_pages():
        seconds = medians(functions, runs)
    rate = 2 * count * count * a.shape[1] / seconds["gemm"] / 1e9
    layers = [
        {
            "layer": name,
            "strategy": strategy(entry),
            "seconds": seconds[name],
            "gflops": count * (count + 1) * entry.width / seconds[name] / 1e9,
        }
        for name, entry in entries.items()
    ]
    total = sum(row["seconds"] for row in layers)
    work = sum(count * (count + 1) * entry.width for entry in entries.values())
    return {"n": count, "gemm_gflops": rate, "layers": layers, "share_of_gemm_rate": work / total / 1e9 / rate}


def fit_speed(runs: int) -> dict[str, Any]:
    """A default fit on 500 CIFAR-10 pictures against one 15-epoch fine-tuning run of the same network."""
    data, backbone = cifar10(), load_backbone("mobilenet_v2").with_size(SIZE)
    chosen, test = few_shot(data.train_labels, 50, seed=0), held_out(len(data.test), 1000)
    pictures = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract)
    held = load_pictures(data.test[test], data.test_labels[test], contract=backbone.contract)
    tuned: list[Any] = []
    fitted: dict[str, Any] = {}

    def tangent(augment: str | None) -> Callable[[], None]:
        def run() -> None:
            fitted[str(augment)] = TangentClassifier(backbone, augment=augment).fit(pictures)

        return run

    def tune() -> None:
        with warm_pages():  # the same memory settings for both
            tuned.append(fine_tune(backbone, pictures, FineTuneSettings(learning_rate=1e-4, epochs=15)))

    seconds: dict[str, list[float]] = {"tangent": [], "tangent, flip": [], "fine-tuning": []}
    for _ in range(runs):
        for name, function in (("tangent", tangent(None)), ("fine-tuning", tune), ("tangent, flip", tangent("flip"))):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pictures": 500,
        "seconds": seconds,
        "medians": median,
        "tangent_to_one_run": median["tangent"] / median["fine-tuning"],
        "tangent_to_sweep_of_four": median["tangent"] / median["fine-tuning"] / 4,
        "flip_to_one_run": median["tangent, flip"] / median["fine-tuning"],
        "stages": {name: model.fit_report_["stages"] for name, model in fitted.items()},
        "accuracy_on_1000": {
            "tangent": fitted["None"].score(held),
            "tangent, flip": fitted["flip"].score(held),
            "fine-tuning": float((tuned[-1].predict(held) == held.labels).mean()),
        },
    }


MEMORY_RUN = """
import json, resource, sys
import numpy as np
from benchmarks.datasets import cifar10
from tangentune import TangentClassifier
data = cifar10()
x, y = data.train[:2000].copy(), data.train_labels[:2000]
model = TangentClassifier("mobilenet_v2", input_size=96, memory_budget=sys.argv[1]).fit(x, y)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"budget": sys.argv[1], "process_peak_bytes": peak, "fit_peak_bytes": model.fit_report_["peak_bytes"],
    "passes": model.fit_report_["passes"], "seconds": model.fit_report_["total_seconds"], "loo": model.loo_score_,
    "loo_head": model.loo_predictions_[:50].tolist()}))
"""


def memory(budgets: tuple[str, ...] = ("4GiB", "16GiB")) -> dict[str, Any]:
    """2,000 pictures under a memory budget, each in a process of its own, and how far the answers are apart."""
    import json

    rows = []
    for budget in budgets:
        done = subprocess.run([sys.executable, "-c", MEMORY_RUN, budget], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    heads = [torch.tensor(row.pop("loo_head")) for row in rows]
    return {"runs": rows, "largest_difference": float((heads[0] - heads[-1]).abs().max())}


def main() -> None:
    """Run everything asked for, print a table, write docs/results/speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="rows and Gram only")
    parser.add_argument("--runs", type=int, default=5, help="measurements of each figure")
    parser.add_argument("--memory", action="store_true", help="also 2,000 pictures under a 4 GiB budget (minutes)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {"rows": rows_speed(runs=arguments.runs), "gram": gram_speed(runs=arguments.runs)}
    _print_kernels(results)
    if not arguments.quick:
        try:
            results["fit"] = fit_speed(arguments.runs)
            _print_fit(results["fit"])
            if arguments.memory:
                results["memory"] = memory()
                print(results["memory"])
        except DataMissing as error:
            print(f"skipped the fit: {error}")
        print(f"written: {record('speed', results)}")


def _print_kernels(results: dict[str, Any]) -> None:
    print("rows of a batch of 32, MobileNetV2 at 96 px, one thread (milliseconds a batch)")
    for layout in ("plain", "channels_last"):
        row = results["rows"][layout]
        print(
            f"  {layout:14s} forward+backward {1e3 * row['forward_backward']:6.0f}  rows {1e3 * row['rows']:6.0f}  "
            f"vmap(grad) {1e3 * row['vmap_grad']:6.0f}  rows/fb {row['rows_to_forward_backward']:.2f}  "
            f"vmap/rows {row['vmap_grad_to_rows']:.2f}"
        )
    grams = results["gram"]
    print(f"Gram of {grams['n']} pictures; a matrix product runs at {grams['gemm_gflops']:.0f} GFLOP/s")
    for row in grams["layers"]:
        print(f"  {row['layer']:28s} {row['strategy']:6s} {row['seconds']:.3f} s  {row['gflops']:6.0f} GFLOP/s")
    print(f"  all: {100 * grams['share_of_gemm_rate']:.0f} % of the matrix product's rate")


def _print_fit(fit: dict[str, Any]) -> None:
    print("fit on 500 CIFAR-10 pictures, 10 classes, 96 px, one thread (median seconds)")
    for name, value in fit["medians"].items():
        print(f"  {name:16s} {value:6.1f} s   accuracy on 1,000 held-out {fit['accuracy_on_1000'][name]:.3f}")
    print(
        f"  tangent / one fine-tuning run {fit['tangent_to_one_run']:.3f}, / sweep of four "
        f"{fit['tangent_to_sweep_of_four']:.3f}; with flips / one run {fit['flip_to_one_run']:.3f}"
    )


if __name__ == "__main__":
    main()
