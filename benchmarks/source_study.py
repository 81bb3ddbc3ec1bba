"""Which pre-training pictures to choose for a few target pictures, and whether they help: three targets, three seeds.

    python -m benchmarks.source_study

Measures what docs/results/source_study.json lacks, then writes page and picture (`benchmarks.source_page`). It may be
stopped and started again; `--way` limits it to a part, so that two processes can share the work. About two hours on
one thread.
"""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from benchmarks import record, source_page
from benchmarks.cifar_split import begin, study_parser
from benchmarks.datasets import ROOT
from benchmarks.source_data import HALF, TARGETS, SourceTask, network, task
from benchmarks.source_methods import (
    ALL,
    NONE,
    RANKINGS,
    TRAINED,
    Geometry,
    chosen,
    closed_form,
    facts,
    geometries,
    joint,
    selected,
)
from tangentune.networks.backbone import Backbone

NAME, SEEDS, BUDGETS = "source_study", range(3), (100, 400)
LEARNERS = {"joint": joint, "closed": closed_form}


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--way", choices=("select", *LEARNERS), action="append", help="only this part; repeatable")
    parser.add_argument("--seed", type=int, choices=SEEDS, action="append", help="only this draw; repeatable")
    given = parser.parse_args()
    begin(given)
    backbone = network()
    for seed, target, keys in jobs(given.seed or SEEDS, given.way or ("select", *LEARNERS)):
        missing = [key for key in keys if not record.done(NAME, key, _section(key))]
        if not missing:
            continue
        own = task(target, seed, backbone)
        made = geometries(own, backbone)
        for key in missing:
            values = run(own, made[True], backbone, key) if "way" in key else selection(own, made, key)
            with alone():
                record.append(NAME, key, values, _section(key))
            print(key, {name: value for name, value in values.items() if name != "overlap"}, flush=True)
    source_page.main()


def jobs(seeds: Iterable[int], ways: Iterable[str]) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Seed, target and keys, the longest last: the closed form with the whole pool takes minutes."""
    made = []
    for seed, way, target in product(seeds, ways, TARGETS):
        keys = selection_keys(target, seed) if way == "select" else run_keys(target, seed, way)
        long = [key for key in keys if way == "closed" and key["ranking"] == ALL]
        made += [(0, seed, target, [key for key in keys if key not in long]), (1, seed, target, long)]
    return [(seed, target, keys) for _, seed, target, keys in sorted(made, key=lambda job: job[0])]


def selection_keys(target: str, seed: int) -> list[dict[str, Any]]:
    """Every ranking at every budget, in both geometries."""
    every = product((False, True), RANKINGS, BUDGETS)
    return [
        {"target": target, "seed": seed, "centred": centred, "ranking": ranking, "budget": budget}
        for centred, ranking, budget in every
    ]


def run_keys(target: str, seed: int, way: str) -> list[dict[str, Any]]:
    """Without source, with some of it by every trained ranking, with all."""
    parts = [(NONE, 0), (ALL, 2 * HALF), *((ranking, budget) for budget in BUDGETS for ranking in TRAINED[way])]
    return [
        {"target": target, "seed": seed, "way": way, "ranking": ranking, "budget": budget} for ranking, budget in parts
    ]


def selection(own: SourceTask, made: dict[bool, Geometry], key: dict[str, Any]) -> dict[str, Any]:
    """What a ranking chooses, and how much of it the others choose too."""
    geometry, budget, seed = made[key["centred"]], key["budget"], key["seed"]
    found = {ranking: chosen(ranking, geometry, budget, seed) for ranking in RANKINGS}
    mine = set(found[key["ranking"]].rows.tolist())
    shared = {other: len(mine & set(its.rows.tolist())) / budget for other, its in found.items()}
    return {**facts(own, geometry, found[key["ranking"]]), "overlap": shared}


def run(own: SourceTask, geometry: Geometry, backbone: Backbone, key: dict[str, Any]) -> dict[str, Any]:
    """One way of learning with one choice of source pictures."""
    source = None
    if key["ranking"] != NONE:
        source = selected(own, geometry, chosen(key["ranking"], geometry, key["budget"], key["seed"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate pictures
        return LEARNERS[key["way"]](own, backbone, source, key["seed"])


def _section(key: dict[str, Any]) -> str:
    return "rows" if "way" in key else "selections"


@contextmanager
def alone() -> Iterator[None]:
    """Lets one process at a time add to the results."""
    path = ROOT / ".cache" / f"{NAME}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
