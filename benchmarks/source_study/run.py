"""Which pre-training pictures to choose for a few target pictures, and whether they help: three targets, three seeds.

    python -m benchmarks.source_study.run

Measures what docs/results/source_study.json lacks, then writes page and picture. It may be stopped and started again.
About two hours on one thread.
"""

from __future__ import annotations

from functools import cache
from itertools import product

from benchmarks import record
from benchmarks.record import Row
from benchmarks.source_study import methods
from benchmarks.source_study.page import ALL, EVEN, HALF, NAME, NONE, TARGETS, TRAINED, publish
from benchmarks.study import begin, quietly, study_parser
from tangentune import load_backbone

SEEDS, BUDGETS = range(3), (100, 400)
LEARNERS = {"joint": methods.joint_training, "closed": methods.closed_form}
COMPARED = [name for name in methods.RANKINGS if name not in (EVEN, ALL)]  # at every budget, in both geometries
SELECTIONS = [
    {"target": target, "seed": seed, "centred": centred, "ranking": ranking, "budget": budget}
    for seed, target, centred, ranking, budget in product(SEEDS, TARGETS, (False, True), COMPARED, BUDGETS)
]
LEARNT = [  # without source, with some of it by every trained ranking, with all
    {"target": target, "seed": seed, "way": way, "ranking": ranking, "budget": budget}
    for seed, way, target in product(SEEDS, LEARNERS, TARGETS)
    for ranking, budget in [(NONE, 0), *((name, size) for size in BUDGETS for name in TRAINED[way]), (ALL, 2 * HALF)]
]


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(methods.SIZE)

    @cache
    def prepared(target: str, seed: int) -> methods.Drawn:
        return methods.drawn(methods.task(target, seed, backbone), backbone)

    def selection(target: str, seed: int, centred: bool, ranking: str, budget: int) -> Row:
        own = prepared(target, seed)
        return methods.facts(own.task.right, methods.chosen(own, ranking, budget, seed, centred))

    def learning(target: str, seed: int, way: str, ranking: str, budget: int) -> Row:
        own = prepared(target, seed)
        with quietly():
            source = None if ranking == NONE else methods.chosen(own, ranking, budget, seed)
            return LEARNERS[way](own.task, backbone, source, seed)

    record.fill(NAME, SELECTIONS, lambda key: selection(**key), "selections")
    record.fill(NAME, LEARNT, lambda key: learning(**key))
    publish()


if __name__ == "__main__":
    main()
