"""Adapting trained networks to new tasks with few examples: waves, angles of garments, classes of CIFAR-10.

    python -m benchmarks.transfer.run                   # all three, then the page; about 25 minutes on one thread
    python -m benchmarks.transfer.run --study angles    # one of them

Measures what docs/results/transfer_sines.json, transfer_angles.json and transfer_classes.json lack.
"""

from __future__ import annotations

from benchmarks import record
from benchmarks.study import begin, study_parser
from benchmarks.transfer import angles, classes, sines
from benchmarks.transfer.page import publish

STUDIES = {"sines": sines, "angles": angles, "classes": classes}


def main() -> None:
    """Measure what is missing, draw an example of adapted waves, write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--study", choices=list(STUDIES), action="append", help="only this one; repeatable")
    for name in begin(parser).study or STUDIES:
        study = STUDIES[name]
        record.fill(study.NAME, study.keys(), lambda key, study=study: study.measure(**key))
        if study is sines:
            sines.example().savefig(record.RESULTS / f"{sines.NAME}.png", dpi=140)
    publish()


if __name__ == "__main__":
    main()
