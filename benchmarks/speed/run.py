"""Speed of the row engine, the Gram assembly and a whole fit, on one thread, against what they must beat.

    python -m benchmarks.speed.run            # everything, about 15 minutes
    python -m benchmarks.speed.run --quick    # rows and Gram only, printed and not stored; under a minute

Every ratio comes from one run on the same thread with alternating measurements; figures are medians.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.datasets import DataMissing, cifar_split
from benchmarks.record import record
from benchmarks.study import alternating, begin, medians, study_parser, waited
from tangentune import TangentClassifier, baselines, load_backbone
from tangentune.jacobian.layers import Pairs
from tangentune.jacobian.rows import batch_rows
from tangentune.jacobian.survey import survey
from tangentune.kernels.gram import gram, strategy
from tangentune.memory import warm_pages

NAME, SIZE = "speed", 96
LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Run everything asked for, print tables, write docs/results/speed.json."""
    parser = study_parser(__doc__, runs=5)
    parser.add_argument("--quick", action="store_true", help="rows and Gram only")
    given = begin(parser)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"rows": rows_speed(given.runs), "gram": gram_speed(given.runs)}
    print(json.dumps(results, indent=1))
    rate = results["gram"]["share_of_gemm_rate"]
    print(f"Kernels are assembled at an effective rate of {rate:.2f} times that of a matrix product")
    if given.quick:
        return
    try:
        results["fit"] = fit_speed(given.runs)
    except DataMissing as error:
        print(f"skipped the fit: {error}")
        return
    print(json.dumps(results["fit"], indent=1))
    print(f"written: {record(NAME, results)}")


def rows_speed(runs: int, batch: int = 32) -> dict[str, Any]:
    """Rows of one batch against forward + backward of the same batch (weight gradients and all) and `vmap(grad)`."""
    out: dict[str, Any] = {"batch": batch}
    x = torch.randn(batch, 3, SIZE, SIZE)
    for layout, fmt in LAYOUTS.items():
        with warm_pages():
            found = medians(alternating(row_ways(x, fmt), runs))
        out[layout] = found | {
            "rows_to_forward_backward": found["rows"] / found["forward_backward"],
            "vmap_grad_to_rows": found["vmap_grad"] / found["rows"],
        }
    fastest = min(out[layout]["forward_backward"] for layout in LAYOUTS)
    return out | {"rows_to_fastest_forward_backward": out["channels_last"]["rows"] / fastest}


def row_ways(x: Tensor, layout: torch.memory_format, autocast: str | None = None) -> dict[str, Callable[[], Any]]:
    """A training step, our rows, and rows as a user of `torch.func` gets them, in one memory layout, where x is."""
    backbone = load_backbone("mobilenet_v2").with_size(x.shape[-1]).to(x.device)
    module, inputs = backbone.module, x.contiguous(memory_format=layout)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    features = backbone.with_autocast(autocast).feature_function
    plan = survey(module, features, [name for name, _ in module.named_parameters()], inputs[:2])
    probe = torch.randn(1, backbone.features(inputs[:1]).shape[1]).to(x)
    body = module.get_submodule("features")
    frozen = {name: p.detach() for name, p in module.named_parameters() if name in plan.names}
    moving = {name: p.clone().requires_grad_() for name, p in frozen.items()}

    def outputs(parameters: dict[str, Tensor], some: Tensor) -> Tensor:
        """Features along the probe; the body is called without the classifier behind it."""
        inside = {name.removeprefix("features."): p for name, p in parameters.items()}
        return functional_call(body, inside, (some,)).mean((2, 3)) @ probe[0]

    def train_step() -> None:
        outputs(moving, inputs).sum().backward()
        for tensor in moving.values():
            tensor.grad = None

    each = vmap(grad(lambda parameters, sample: outputs(parameters, sample[None])[0]), in_dims=(None, 0))
    return {
        "forward_backward": train_step,
        "rows": lambda: batch_rows(plan, [inputs], probe),
        "vmap_grad": lambda: each(frozen, inputs),
    }


def gram_speed(runs: int, count: int = 500, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Gram assembly of layers with the shapes of MobileNetV2 at 96 px, against one large matrix product.

    The rate is an effective one: it counts the multiply-adds of the explicit symmetric product, n (n + 1) / 2 times
    the row width, also those that a strategy skips. That is the work a user asks for, not the work that is done.
    """
    shapes = ((9, 320, 1280), (9, 960, 320), (9, 160, 960), (9, 576, 160), (36, 96, 576), (36, 64, 384))
    drawn = partial(torch.randn, device=device)
    a = drawn(count, 40_000)
    entries = {f"{i}->{o}, {t} positions": Pairs(drawn(count, t, i), drawn(count, t, 1, o)) for t, i, o in shapes}
    ways: dict[str, Callable[[], Any]] = {"gemm": lambda: a @ a.T}
    ways |= {name: (lambda entry=entry: gram(entry)) for name, entry in entries.items()}
    with warm_pages():
        seconds = medians(alternating(waited(ways, device), runs))
    rate = 2 * count * count * a.shape[1] / seconds["gemm"] / 1e9
    work = {name: count * (count + 1) * entry.width for name, entry in entries.items()}
    layers = []
    for name, entry in entries.items():
        own = {"seconds": seconds[name], "gflops": work[name] / seconds[name] / 1e9}
        layers.append({"layer": name, "strategy": strategy(entry), **own})
    share = sum(work.values()) / sum(row["seconds"] for row in layers) / 1e9 / rate
    return {"n": count, "gemm_gflops": rate, "layers": layers, "share_of_gemm_rate": share}


def fit_speed(runs: int) -> dict[str, Any]:
    """A default fit on 500 CIFAR-10 pictures against one 15-epoch fine-tuning run of the same network."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures, held = cifar_split(backbone, 50, seed=0)
    settings = baselines.FineTuneSettings(learning_rate=1e-4, epochs=15)
    fitted: dict[str, Any] = {}

    def tangent(augment: str | None) -> None:
        fitted[str(augment)] = TangentClassifier(backbone, augment=augment, outer_steps=0).fit(pictures)

    def tune() -> None:
        with warm_pages():  # the same memory settings for both
            fitted["fine-tuning"] = baselines.fine_tune(backbone, pictures, settings)

    ways = {"tangent": lambda: tangent(None), "fine-tuning": tune, "tangent, flip": lambda: tangent("flip")}
    taken = alternating(ways, runs, warm_up=False)
    median = medians(taken)
    return {
        "pictures": 500,
        "seconds": {name: [spent["seconds"] for spent in own] for name, own in taken.items()},
        "medians": median,
        "tangent_to_one_run": median["tangent"] / median["fine-tuning"],
        "tangent_to_sweep_of_four": median["tangent"] / median["fine-tuning"] / 4,
        "flip_to_one_run": median["tangent, flip"] / median["fine-tuning"],
        "stages": {name: fitted[name].fit_report_["stages"] for name in ("None", "flip")},
        "accuracy_on_1000": {
            "tangent": fitted["None"].score(held),
            "tangent, flip": fitted["flip"].score(held),
            "fine-tuning": float((fitted["fine-tuning"].predict(held) == held.labels).mean()),
        },
    }


if __name__ == "__main__":
    main()
