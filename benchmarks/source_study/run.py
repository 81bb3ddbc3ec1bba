"""Which pre-training pictures to choose for a few target pictures, and whether they help: three targets, three seeds.

    python -m benchmarks.source_study.run

Measures what docs/results/source_study.json lacks, then writes page and picture. It may be stopped and started again.
About two hours on one thread. Left out, though the stored rows have it: greedy earth mover's turns, and overlaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product

from benchmarks import record
from benchmarks.record import Row
from benchmarks.source_study.data import SIZE, SourceTask, task
from benchmarks.source_study.methods import Geometry, chosen, closed_form, facts, geometry, joint_training
from benchmarks.source_study.page import RANKINGS, publish
from benchmarks.source_study.results import ALL, HALF, NAME, NONE, TARGETS, TRAINED
from benchmarks.study import begin, quietly, study_parser
from tangentune import Backbone, load_backbone, transport

SEEDS, BUDGETS = range(3), (100, 400)
LEARNERS = {"joint": joint_training, "closed": closed_form}


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--way", choices=("select", *LEARNERS), action="append", help="only this part; repeatable")
    ways = begin(parser).way or ("select", *LEARNERS)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)

    @cache
    def prepared(target: str, seed: int) -> tuple[SourceTask, Geometry]:
        own = task(target, seed, backbone)
        return own, geometry(own, backbone)

    def selection(key: Row) -> Row:
        own, made = prepared(key["target"], key["seed"])
        made = Geometry(made.pool, made.target, made.labels, key["centred"])
        return facts(own, made, chosen(key["ranking"], made, key["budget"], key["seed"]))

    if "select" in ways:
        record.fill(NAME, selection_keys(), selection, "selections")
    record.fill(NAME, run_keys(ways), lambda key: learnt(*prepared(key["target"], key["seed"]), backbone, key))
    publish()


def selection_keys() -> Iterator[Row]:
    """Every ranking at every budget, in both geometries."""
    rankings = [name for name in RANKINGS if name != "EMD"]
    for seed, target, centred, ranking, budget in product(SEEDS, TARGETS, (False, True), rankings, BUDGETS):
        yield {"target": target, "seed": seed, "centred": centred, "ranking": ranking, "budget": budget}


def run_keys(ways: Iterable[str]) -> Iterator[Row]:
    """Without source, with some of it by every trained ranking, with all."""
    for seed, way, target in product(SEEDS, LEARNERS, TARGETS):
        parts = [(NONE, 0), *((ranking, budget) for budget in BUDGETS for ranking in TRAINED[way]), (ALL, 2 * HALF)]
        for ranking, budget in parts if way in ways else ():
            yield {"target": target, "seed": seed, "way": way, "ranking": ranking, "budget": budget}


def learnt(own: SourceTask, made: Geometry, backbone: Backbone, key: Row) -> Row:
    """One way of learning with one choice of source pictures."""
    source = None
    if key["ranking"] != NONE:
        found = chosen(key["ranking"], made, key["budget"], key["seed"])
        pictures = own.pool.select(found.rows)
        source = transport.SelectedPictures(pictures, found.weights, found.shares, made.targets)
    with quietly():
        return LEARNERS[key["way"]](own, backbone, source, key["seed"])


if __name__ == "__main__":
    main()
