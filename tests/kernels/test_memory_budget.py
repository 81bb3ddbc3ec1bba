"""The memory budget: the same answer in as many passes over the pictures as it takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from small import FIXED, backbone, network, pictures

from tangentune import TangentClassifier
from tangentune.errors import BudgetError
from tangentune.kernels.collect import plan_passes

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)


def classifier(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options))


@pytest.mark.parametrize("options", [
    {}, {"metric_power": 0.25, "normalize": True}, {"metric_power": 0.5, "augment": "flip", "probes": 2},
    {"metric_power": "loo", "body_scale": "loo", "normalize": "loo", "damping": "loo"},
], ids=str)  # fmt: skip
@pytest.mark.usefixtures("own_memory_only")
def test_tiles_give_the_same_answer(options: dict[str, Any]) -> None:
    whole = classifier(**options).fit(X, Y)
    tight = classifier(**options, memory_budget=tight_budget(classifier(**options), X, Y)).fit(X, Y)
    assert whole.fit_report_["passes"] == 1
    assert tight.fit_report_["passes"] > 1
    assert_allclose(tight.kernel_, whole.kernel_, rtol=1e-6, atol=1e-6 * whole.kernel_.max())
    assert_allclose(tight.decision_function(NEW), whole.decision_function(NEW), rtol=0, atol=1e-6)
    assert tight.block_shares_ == pytest.approx(whole.block_shares_, rel=1e-6)


def tight_budget(clf: TangentClassifier, x: NDArray, y: NDArray) -> int:
    """The smallest budget, to 32 kB, that the plan accepts."""
    low, high = 100_000, 2_000_000
    while high - low > 2**15:
        middle = (low + high) // 2
        try:
            clf.set_params(memory_budget=middle).plan(x, y)
            high = middle
        except BudgetError:
            low = middle
    return high


def test_a_hopeless_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="that this process already holds, more than the memory budget of") as caught:
        classifier(memory_budget="1MiB").fit(X, Y)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_memory_only")
def test_a_budget_without_room_for_the_kernels_is_refused() -> None:
    with pytest.raises(BudgetError, match="raise memory_budget"):
        classifier(memory_budget=200_000).fit(X, Y)


def test_passes_hold_their_budget_and_every_parameter_once() -> None:
    sizes = {"a": 10, "b": 400, "c": 30, "d": 200, "e": 5}
    for budget in (12_000, 15_000, 20_000, 30_000):
        groups = plan_passes(sizes, 10, budget)
        assert sorted(name for group in groups for name in group) == sorted(sizes)
        for group in groups:
            assert 10 * (sum(sizes[n] for n in group) + 2 * max(sizes[n] for n in group)) <= budget
            assert group == [name for name in sizes if name in group]
    assert len(plan_passes(sizes, 10, 30_000)) == 1
    with pytest.raises(BudgetError, match="the rows of b"):
        plan_passes(sizes, 10, 11_999)


def test_the_plan_says_what_fit_does() -> None:
    plan = classifier().plan(X, Y)
    assert {"n", "seconds", "peak_bytes", "passes", "parameters", "layers"} <= set(plan)
    assert plan["n"] == 40
    assert plan["parameters"] == sum(p.numel() for p in network().parameters())
    assert {layer["name"] for layer in plan["layers"]} == {name for name, _ in network().named_parameters()}


TIGHT = r"""
import os, re, sys, warnings
import numpy as np, torch
from torch import nn
from tangentune import Backbone, TangentClassifier
from tangentune.errors import BudgetError

torch.set_num_threads(1)
warnings.simplefilter("ignore")
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, 256, 3, 2, 1),
    nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 256),
)
rng = np.random.default_rng(0)
n, size, options = eval(sys.argv[1])
x, y = rng.integers(0, 256, (n, 3, size, size)).astype(np.uint8), np.arange(n) % 10
clf = TangentClassifier(Backbone(net, input_size=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3), **options)

def smallest():
    low, high = 0, clf.set_params(memory_budget="6000MiB").plan(x, y)["most_bytes"] // 2**20 + 64
    while high - low > 8:
        middle = (low + high) // 2
        try:
            clf.set_params(memory_budget=f"{middle}MiB").plan(x, y)
            high = middle
        except BudgetError:
            low = middle
    return high

def largest(budget):
    try:
        clf.set_params(memory_budget=f"{budget}MiB").fit(x, y)
    except BudgetError:
        return 0
    seen = int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
    return max(seen, *(stage["peak_bytes"] for stage in clf.fit_report_["stages"]))

def twin(work, *given):  # of this process, which itself never plans or fits
    here, there = os.pipe()
    if (number := os.fork()) == 0:
        os.write(there, str(work(*given)).encode())
        os._exit(0)
    os.close(there)
    told = int(os.read(here, 20))
    assert os.waitpid(number, 0)[1] == 0  # it ends well
    return told

found = twin(smallest)
for spare in (8, 16, 32, 64, 128, 256):
    if highest := twin(largest, found + spare):
        break
print(found + spare, highest)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are those of /proc")
@pytest.mark.parametrize(("n", "size", "options"), [
    (150, 64, {"likelihood": "laplace", "augment": None, "outer_steps": 0}),
    *(pytest.param(300, 64, options, marks=pytest.mark.slow) for options in (
        {}, {"likelihood": "laplace"}, {"likelihood": "dirichlet"}, {"probes": 200, "subset": "last:1"},
        {"augment": "flip", "outer_steps": 8},
        {"metric_power": 0.5, "body_scale": 1.0, "damping": 1.0, "normalize": True},
    )),
], ids=str)  # fmt: skip
def test_a_fit_keeps_the_smallest_budget_that_the_plan_takes(n: int, size: int, options: dict[str, Any]) -> None:
    """In processes of their own, each a copy of one that has only loaded the library; the system says what they held.

    What a process holds before it starts differs from one to the next, so the plan of the second may refuse what the
    plan of the first took: then it gets a little more. What a plan takes, it must keep.
    """
    command = [sys.executable, "-c", TIGHT, repr((n, size, options))]
    budget, highest = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 0 < highest <= budget * 2**20
