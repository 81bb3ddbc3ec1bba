"""Adapting trained networks to new tasks with few examples: waves, angles of garments, classes of CIFAR-10.

    python -m benchmarks.transfer.run                   # all three, then the page; about 25 minutes on one thread
    python -m benchmarks.transfer.run --study angles    # one of them

Measures what docs/results/transfer_sines.json, transfer_angles.json and transfer_classes.json lack.
"""

from __future__ import annotations

from benchmarks import record
from benchmarks.study import begin, study_parser
from benchmarks.transfer import studies
from benchmarks.transfer.page import publish

STUDIES = {"sines": studies.sines, "angles": studies.angles, "classes": studies.classes}


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--study", choices=list(STUDIES), action="append", help="only this one; repeatable")
    for name in begin(parser).study or STUDIES:
        record.fill(f"transfer_{name}", studies.keys(name), lambda key, name=name: STUDIES[name](**key))
    publish()


if __name__ == "__main__":
    main()
