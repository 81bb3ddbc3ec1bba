"""One LQF step against one ordinary fine-tuning step and against `torch.func.jvp` with autograd through it.

    python -m benchmarks.lqf_step

Same batch, same head, same optimiser (fused AdamW), one thread, one run, alternating measurements, medians of wall
seconds; then the peak memory of each step above the idle level, in the same process. About 3 minutes.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from benchmarks import record
from benchmarks.cifar_split import SIZE, begin, study_parser
from tangentune.jacobian.linearization import Linearization
from tangentune.memory import peak_bytes, reset_peak, warm_pages
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.features import Loaded
from tangentune.networks.heads import random_head

NAME, CLASSES, BAR = "lqf_step", 10, 1.7
LAYOUTS = {"plain": torch.contiguous_format, "channels_last": torch.channels_last}
STEPS = {
    "fine_tuning": "(a) ordinary fine-tuning: forward, cross-entropy, backward, fused AdamW",
    "lqf": "(b) LQF: `Linearization.step` on the squared loss, fused AdamW on the tangent",
    "func_jvp": "(c) `torch.func.jvp` of the network, squared loss, `backward()` to the tangent, fused AdamW",
}


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs (n, 3, H, W) and labels (n,)."""

    x: Tensor
    labels: Tensor

    @property
    def targets(self) -> Tensor:
        """One-hot (n, C)."""
        return F.one_hot(self.labels, CLASSES).to(self.x)


class Network(nn.Module):
    """A backbone's features through a head, sharing no tensor with others."""

    def __init__(self, backbone: Backbone, head: nn.Linear, layout: torch.memory_format):
        super().__init__()
        self.extract = backbone.feature_function
        self.body, self.head = _copy(backbone.module, layout), _copy(head, torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, C)."""
        return self.head(self.extract(self.body, x))


def main() -> None:
    """Measure, print, write docs/results/lqf_step.json and the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--runs", type=int, default=15, help="measurements of each figure")
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    begin(given)
    results: dict[str, Any] = {"batch": given.batch, "size": SIZE, "runs": given.runs}
    for layout in LAYOUTS:
        steps = all_steps(layout, given.batch)
        with warm_pages():
            seconds, cpu = medians(steps, given.runs)
        memory = {name: peak_above_idle(step) for name, step in steps.items()}
        results[layout] = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "lqf_to_fine_tuning": seconds["lqf"] / seconds["fine_tuning"],
            "func_jvp_to_fine_tuning": seconds["func_jvp"] / seconds["fine_tuning"],
            "peak_bytes_above_idle": memory,
        }
    fastest = {name: min(results[layout]["seconds"][name] for layout in LAYOUTS) for name in STEPS}
    results["fastest"] = {
        "lqf_to_fine_tuning": fastest["lqf"] / fastest["fine_tuning"],
        "func_jvp_to_fine_tuning": fastest["func_jvp"] / fastest["fine_tuning"],
    }
    record.record(NAME, results)
    text = page(results)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def medians(steps: dict[str, Callable[[], None]], runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and processor seconds of each step, taken in turn so that a drift of the machine hits all alike."""
    for step in steps.values():
        step()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = ({name: statistics.median(s[i] for s in own) for name, own in taken.items()} for i in (0, 1))
    return wall, cpu


def all_steps(layout: str, batch: int) -> dict[str, Callable[[], None]]:
    """The three steps, each with a network, a tangent and optimiser state of its own."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=LAYOUTS[layout])
    data = Batch(x, torch.randint(0, CLASSES, (batch,), generator=generator))
    head = random_head(backbone.features(x[:1]).shape[1], CLASSES)
    return {
        "fine_tuning": fine_tuning_step(backbone, head, data, layout),
        "lqf": lqf_step(backbone, head, data, layout),
        "func_jvp": func_jvp_step(backbone, head, data, layout),
    }


def fine_tuning_step(backbone: Backbone, head: nn.Linear, data: Batch, layout: str) -> Callable[[], None]:
    """(a)."""
    network = Network(backbone, head, LAYOUTS[layout]).requires_grad_(True)
    network(data.x[:1]).sum().backward()  # a classifier behind the features has no gradient
    moving = [p for p in network.parameters() if p.grad is not None]
    optimiser = torch.optim.AdamW(moving, lr=1e-9, fused=True)
    optimiser.zero_grad()

    def step() -> None:
        F.cross_entropy(network(data.x), data.labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def lqf_step(backbone: Backbone, head: nn.Linear, data: Batch, layout: str) -> Callable[[], None]:
    """(b)."""
    mine = Backbone.from_loaded(_loaded(backbone, layout), backbone.name)
    lin = Linearization(mine, "all", head)
    tangent = {name: nn.Parameter(t) for name, t in lin.zeros().items()}
    optimiser, targets = torch.optim.AdamW(tangent.values(), lr=1e-9, fused=True), data.targets

    def step() -> None:
        grads = lin.step(data.x, tangent, lambda f0, jv: (f0 + jv - targets) / len(targets))[2]
        for name, gradient in grads.items():
            tangent[name].grad = gradient
        optimiser.step()
        optimiser.zero_grad()

    return step


def func_jvp_step(backbone: Backbone, head: nn.Linear, data: Batch, layout: str) -> Callable[[], None]:
    """(c)."""
    network = Network(backbone, head, LAYOUTS[layout]).requires_grad_(True)
    network(data.x[:1]).sum().backward()
    point = {name: p.detach() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    network.requires_grad_(False)
    tangent = {name: nn.Parameter(torch.zeros_like(p)) for name, p in point.items()}
    optimiser, targets = torch.optim.AdamW(tangent.values(), lr=1e-9, fused=True), data.targets

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(network, parameters, (data.x,))

    def step() -> None:
        f0, jv = jvp(outputs, (point,), (tangent,))[:2]
        loss = 0.5 * (f0 + jv - targets).square().sum() / len(targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def peak_above_idle(step: Callable[[], None]) -> int:
    """Highest resident memory during two steps above that just before; state was allocated by earlier steps."""
    device = torch.device("cpu")
    gc.collect()
    with warm_pages():
        pass  # its end hands freed memory back, so that a step must ask for its own
    reset_peak(device)
    idle = _resident_bytes()
    with warm_pages():
        step()
        step()
    return peak_bytes(device) - idle


def page(results: dict[str, Any]) -> str:
    """The page as Markdown: the verdict first."""
    best = results["fastest"]["lqf_to_fine_tuning"]
    memory = {layout: results[layout]["peak_bytes_above_idle"] for layout in LAYOUTS}
    less = all(figures["lqf"] < figures["func_jvp"] for figures in memory.values())
    met = "met" if best <= BAR else "MISSED"
    lines = ["# What one LQF step costs", ""]
    lines.append(f"- Time: {best:.2f} fine-tuning steps, each in its faster layout; the bar of {BAR} is {met}.")
    lines.append(f"- Memory: {'less' if less else 'NOT less'} than `torch.func.jvp` with autograd through it.")
    table = [
        {
            "layout": layout.replace("_", " "),
            "step": words,
            "ms": f"{1e3 * results[layout]['seconds'][name]:.0f}",
            "to (a)": f"{results[layout]['seconds'][name] / results[layout]['seconds']['fine_tuning']:.2f}",
            "CPU ms": f"{1e3 * results[layout]['cpu_seconds'][name]:.0f}",
            "CPU to (a)": f"{results[layout]['cpu_seconds'][name] / results[layout]['cpu_seconds']['fine_tuning']:.2f}",
            "MiB above idle": f"{memory[layout][name] / 2**20:.0f}",
        }
        for layout in LAYOUTS
        for name, words in STEPS.items()
    ]
    lines += ["", record.markdown_table(table, dict.fromkeys(table[0], "")), ""]
    said = f"MobileNetV2, {results['batch']} pictures of {results['size']} px, {CLASSES} classes, all layers"
    how = f"medians of {results['runs']} alternating measurements in one run, wall and processor time"
    lines += [f"{said}, one thread; {how}; {platform.machine()}.", ""]
    return "\n".join(lines)


def _loaded(backbone: Backbone, layout: str) -> Loaded:
    """The backbone's parts with a network of its own, frozen, in the layout."""
    module = _copy(backbone.module, LAYOUTS[layout])
    return Loaded(module, backbone.contract, backbone.feature_function.extract)


def _copy(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False).to(memory_format=layout)  # pyright: ignore[reportCallIssue]


def _resident_bytes() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        found = re.search(r"VmRSS:\s+(\d+) kB", lines.read())
        if found:
            return int(found[1]) * 1024
    raise RuntimeError("resident memory is read from /proc/self/status, which this system does not have")


if __name__ == "__main__":
    main()
