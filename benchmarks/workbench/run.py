"""Seconds of what a person waits for at the workbench: every edit with all its figures, undo, reasons, predictions.

    python -m benchmarks.workbench.run             # ten minutes on one thread; twice that the first time, with fits
    python -m benchmarks.workbench.run --runs 20   # edits of each kind; a trial

CIFAR-10, MobileNetV2 at 32 px, the whole network; the fits stay in .cache/workbench, to be deleted by hand. An edit is
what `Session.take` does, the journal on the disk included, with the figures of the model and of each class, and the 24
worst suspects. Wall time is what a person waits on this machine; processor time is what it costs, whoever else is at
work.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.datasets import cifar_split
from benchmarks.record import ROOT, fill, load
from benchmarks.study import STILL, begin, stopwatch, study_parser
from tangentune import Pictures, TangentClassifier, load_backbone
from tangentune.solvers.system import refresh
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

NAME, SIZE, NEW = "workbench", 32, 100
SLOW = 10  # times that what is not an edit's every day is done
# Seconds, p95 on one thread of a quiet machine.
BUDGETS: dict[int, dict[str, float]] = {
    500: {"relabel": 0.06, "forget": 0.06, "undo": 0.05, "redo": 0.05, "explain a training picture": 0.1},
    2000: {
        "relabel": 0.15, "forget": 0.15, "undo": 0.05, "redo": 0.05, "explain a training picture": 0.1,
        "explain a new picture": 1.0, "first prediction after an edit": 0.5,
    },
    20000: {
        "relabel": 0.3, "forget": 0.3, "undo": 0.05, "redo": 0.05, "explain a training picture": 0.1,
        "first prediction after an edit": 0.5,
    },
}  # fmt: skip


def main() -> None:
    """Measure, print, write docs/results/workbench.json."""
    given = begin(study_parser(__doc__, runs=200))
    warnings.simplefilter("ignore")
    keys = [{"pictures": n, "edits": given.runs} for n in BUDGETS]
    fill(NAME, keys, lambda key: measure(key["pictures"], key["edits"]))
    for row in load(NAME).get("rows", []):
        for name, spent in row["spent"].items():
            kept = "" if spent["budget"] is None else f"of {1e3 * spent['budget']:5.0f}"
            figures = [1e3 * spent[key] for key in ("median", "p95", "cpu_median", "cpu_p95")]
            print(f"{row['key']['pictures']:5} {name:32}", *(f"{value:8.1f}" for value in figures), "ms", kept)


def measure(n: int, edits: int) -> dict[str, Any]:
    """A session on a saved model of n pictures: seconds by what was done, and how far it ends from a new solution."""
    made, held = fitted(n)
    spent: dict[str, list[dict[str, float]]] = {}

    def timed(name: str, function: Callable[[], Any]) -> None:
        with stopwatch() as taken:
            function()
        spent.setdefault(name, []).append(taken)

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        shutil.copytree(made, place)
        opened: list[Session] = []
        timed("open", lambda: opened.append(Session.open(place)))
        with opened[0] as session:
            timed("first suspects", session.suspects)
            _edit(session, edits, timed)
            error = difference(session.estimator)
            session.discard()
            size = 0
            if session.rows_help:  # not on landmarks
                timed("rows of all pictures into a file", session.keep_rows)
                size = session.rows_bytes()
        with Session.open(place) as session:
            timed("first new picture, rows in a file", partial(session.answer_new, _one(held, 0)))
            timed("first suspects", session.suspects)
            _ask(session, held, timed)
            session.discard()
    budgets = BUDGETS[n]
    return {
        "spent": {name: _summary(taken) | {"budget": budgets.get(name)} for name, taken in spent.items()},
        "rows_bytes": size,
        "difference_to_refitted_system": error,
    }


def fitted(n: int) -> tuple[Path, Pictures]:
    """A saved model of n pictures, fitted where there is none of this commit's kind yet, and pictures not in it."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures, held = cifar_split(backbone, n // 10, seed=0, test=NEW)
    place = ROOT / ".cache" / "workbench" / f"cifar10-mobilenet_v2-{SIZE}-{n}"
    if not place.exists():
        TangentClassifier(backbone, metric_power=0.25, **STILL).fit(pictures).save_pretrained(place)
    return place, held


def difference(model: TangentClassifier) -> float:
    """Largest difference of the edited dual coefficients to those of the same problem solved anew, relative."""
    dual = refresh(model.solution_.system).dual
    return float((torch.from_numpy(model.dual_coef_) - dual).abs().max() / dual.abs().max())


def _edit(session: Session, edits: int, timed: Callable[[str, Callable[[], Any]], None]) -> None:
    """Relabel and forget in turn, as many of each; every second one is undone and done again."""
    rng = np.random.default_rng(0)

    def refreshed(step: Callable[[], Any]) -> None:
        step()
        session.class_figures()
        session.suspects(24)

    for i in range(edits):
        number, gone = rng.choice(session.numbers, 2, replace=False).tolist()
        relabel, forget = Edit("relabel", (number,), session.classes[rng.integers(10)]), Edit("forget", (gone,))
        timed("relabel", partial(refreshed, partial(session.take, relabel)))
        timed("forget", partial(refreshed, partial(session.take, forget)))
        if i % 2:
            timed("undo", partial(refreshed, session.undo))
        if i % 4 == 1:
            timed("redo", partial(refreshed, session.redo))
        timed("explain a training picture", partial(session.answer, number))


def _ask(session: Session, held: Pictures, timed: Callable[[str, Callable[[], Any]], None]) -> None:
    """What needs rows of the training pictures, which are mapped by now."""
    for i in range(SLOW):
        timed("explain a new picture", partial(session.answer_new, _one(held, i)))
        session.take(Edit("relabel", (session.numbers[i],), session.classes[i % 10]))
        timed("first prediction after an edit", partial(session.estimator.predict, _one(held, i)))
        timed("add a picture", partial(session.add, _one(held, i), session.classes[0]))


def _one(held: Pictures, position: int) -> Pictures:
    return held.select([position]).relabelled(None)


def _summary(taken: list[dict[str, float]]) -> dict[str, Any]:
    wall, cpu = ([one[key] for one in taken] for key in ("seconds", "cpu_seconds"))
    values = {"median": np.median(wall), "p95": np.quantile(wall, 0.95)}
    values |= {"cpu_median": np.median(cpu), "cpu_p95": np.quantile(cpu, 0.95)}
    return {"times": len(taken)} | {name: float(value) for name, value in values.items()}


if __name__ == "__main__":
    main()
