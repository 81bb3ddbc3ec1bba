"""One LQF step against one ordinary fine-tuning step and against `torch.func.jvp` with autograd through it.

    python -m benchmarks.lqf_step.run

Same batch, same head, same optimiser (fused AdamW), one thread, one run, alternating measurements, medians of wall
seconds; then the peak memory of each step above the idle level, in the same process. About 3 minutes.
"""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from benchmarks import record
from benchmarks.lqf_step.page import LAYOUTS, NAME, STEPS, publish
from benchmarks.study import alternating, begin, medians, study_parser
from tangentune import Backbone, Linearization, heads, load_backbone
from tangentune.memory import Meter, warm_pages

SIZE, BATCH, CLASSES = 96, 32, 10


def main() -> None:
    """Measure, write docs/results/lqf_step.json and the page."""
    runs = begin(study_parser(__doc__, runs=15)).runs
    results: dict[str, Any] = {"batch": BATCH, "size": SIZE, "runs": runs}
    for layout in LAYOUTS:
        steps = all_steps(layout)
        with warm_pages():
            taken = alternating(steps, runs)
        seconds = medians(taken)
        results[layout] = {
            "seconds": seconds,
            "cpu_seconds": medians(taken, "cpu_seconds"),
            **ratios(seconds),
            "peak_bytes_above_idle": {name: peak_above_idle(step) for name, step in steps.items()},
        }
    results["fastest"] = ratios({name: min(results[layout]["seconds"][name] for layout in LAYOUTS) for name in STEPS})
    record.record(NAME, results)
    publish()


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds in ordinary fine-tuning steps."""
    return {f"{name}_to_fine_tuning": seconds[name] / seconds["fine_tuning"] for name in ("lqf", "func_jvp")}


class Network(nn.Module):
    """A backbone's features through a head, sharing no tensor with others."""

    def __init__(self, backbone: Backbone, head: nn.Linear, layout: torch.memory_format):
        super().__init__()
        self.extract = backbone.feature_function
        self.body, self.head = copied(backbone.module, layout), copied(head, torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, C)."""
        return self.head(self.extract(self.body, x))

    def moving(self, x: Tensor) -> dict[str, nn.Parameter]:
        """The parameters that outputs depend on: a classifier behind the features has no gradient."""
        self.requires_grad_(True)
        self(x[:1]).sum().backward()
        found = {name: p for name, p in self.named_parameters() if p.grad is not None}
        self.zero_grad()
        return found


def all_steps(name: str) -> dict[str, Callable[[], None]]:
    """The three steps on one batch, each with a network, a tangent and optimiser state of its own."""
    layout = torch.channels_last if name == "channels_last" else torch.contiguous_format
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    targets, head = F.one_hot(labels, CLASSES).to(x), heads.random_head(backbone.features(x[:1]).shape[1], CLASSES)
    tuned, frozen, mine = Network(backbone, head, layout), Network(backbone, head, layout), copy.copy(backbone)
    mine.module = copied(backbone.module, layout)
    lin, point = Linearization(mine, "all", head), {name: p.detach() for name, p in frozen.moving(x).items()}
    frozen.requires_grad_(False)

    def fine_tuning() -> None:
        F.cross_entropy(tuned(x), labels).backward()

    def lqf(tangent: dict[str, nn.Parameter]) -> None:
        grads = lin.step(x, tangent, lambda f0, jv: (f0 + jv - targets) / len(targets))[2]
        for name, gradient in grads.items():
            tangent[name].grad = gradient

    def func_jvp(tangent: dict[str, nn.Parameter]) -> None:
        f0, jv = jvp(lambda parameters: functional_call(frozen, parameters, (x,)), (point,), (tangent,))[:2]
        (0.5 * (f0 + jv - targets).square().sum() / len(targets)).backward()

    own, zeros = (
        {name: nn.Parameter(torch.zeros_like(p)) for name, p in start.items()} for start in (lin.zeros(), point)
    )
    return {
        "fine_tuning": optimised(tuned.moving(x), fine_tuning),
        "lqf": optimised(own, lambda: lqf(own)),
        "func_jvp": optimised(zeros, lambda: func_jvp(zeros)),
    }


def optimised(parameters: dict[str, nn.Parameter], gradients: Callable[[], None]) -> Callable[[], None]:
    """A step of fused AdamW on parameters that a function fills the gradients of."""
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-9, fused=True)

    def step() -> None:
        gradients()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peak_above_idle(step: Callable[[], None]) -> int:
    """Highest resident memory during two steps above that just before; state was allocated by earlier steps."""
    gc.collect()
    with warm_pages():
        pass  # its end hands freed memory back, so that a step must ask for its own
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None  # Linux only
    idle, meter = int(found[1]) * 1024, Meter(torch.device("cpu"))
    with meter.stage("two steps"), warm_pages():
        step()
        step()
    return meter.stages[0]["peak_bytes"] - idle


def copied(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """One of its own, frozen, in the layout."""
    return copy.deepcopy(module).eval().requires_grad_(False).to(memory_format=layout)  # pyright: ignore[reportCallIssue]


if __name__ == "__main__":
    main()
