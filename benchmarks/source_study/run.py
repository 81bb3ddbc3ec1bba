"""Which pre-training pictures to choose for a few target pictures, and whether they help: three targets, three seeds.

    python -m benchmarks.source_study.run

Measures what docs/results/source_study.json lacks, then writes page and picture. It may be stopped and started again.
About two hours on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

from benchmarks import record
from benchmarks.record import Row
from benchmarks.source_study.methods import (
    RANKINGS,
    SIZE,
    Drawn,
    chosen,
    closed_form,
    drawn,
    facts,
    joint_training,
    task,
)
from benchmarks.source_study.page import ALL, EVEN, HALF, NAME, NONE, TARGETS, TRAINED, publish
from benchmarks.study import begin, quietly, study_parser
from tangentune import load_backbone

SEEDS, BUDGETS = range(3), (100, 400)
LEARNERS = {"joint": joint_training, "closed": closed_form}


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)

    @cache
    def prepared(target: str, seed: int) -> Drawn:
        return drawn(task(target, seed, backbone), backbone)

    def selection(target: str, seed: int, centred: bool, ranking: str, budget: int) -> Row:
        own = prepared(target, seed)
        return facts(own.task.right, chosen(own, ranking, budget, seed, centred))

    def learning(target: str, seed: int, way: str, ranking: str, budget: int) -> Row:
        own = prepared(target, seed)
        with quietly():
            source = None if ranking == NONE else chosen(own, ranking, budget, seed)
            return LEARNERS[way](own.task, backbone, source, seed)

    record.fill(NAME, selection_keys(), lambda key: selection(**key), "selections")
    record.fill(NAME, learning_keys(), lambda key: learning(**key))
    publish()


def selection_keys() -> Iterator[Row]:
    """Every ranking at every budget, in both geometries."""
    rankings = [name for name in RANKINGS if name not in (EVEN, ALL)]
    for seed, target, centred, ranking, budget in product(SEEDS, TARGETS, (False, True), rankings, BUDGETS):
        yield {"target": target, "seed": seed, "centred": centred, "ranking": ranking, "budget": budget}


def learning_keys() -> Iterator[Row]:
    """Without source, with some of it by every trained ranking, with all."""
    for seed, way, target in product(SEEDS, LEARNERS, TARGETS):
        some = [(ranking, budget) for budget in BUDGETS for ranking in TRAINED[way] if ranking in RANKINGS]
        for ranking, budget in [(NONE, 0), *some, (ALL, 2 * HALF)]:
            yield {"target": target, "seed": seed, "way": way, "ranking": ranking, "budget": budget}


if __name__ == "__main__":
    main()
