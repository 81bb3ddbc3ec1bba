"""The page on products with the Fisher matrix: `python -m benchmarks.fisher_products.page`."""

from __future__ import annotations

from typing import Literal

from benchmarks import record
from benchmarks.record import Row
from benchmarks.study import read_arguments, study_parser

NAME = "fisher_products"
LIKELIHOODS: tuple[Literal["categorical", "gaussian"], ...] = ("categorical", "gaussian")
PRECISIONS = ("float32", "float64")
EXACT = {"forward_reverse": "forward mode, then reverse", "double_backward": "double backward"}


def publish() -> None:
    """docs/results/fisher_products.md."""
    results = record.load(NAME)
    errors = [results[likelihood]["relative_error"] for likelihood in LIKELIHOODS]
    single, seconds = [own["float32"] for own in errors], results["categorical"]["seconds"]
    parts = {p: f"{max(own[p][way] for own in errors for way in EXACT):.0e}" for p in PRECISIONS}
    parts |= {way: f"{seconds[way] / seconds['finite_difference']:.1f}" for way in EXACT}
    parts |= {likelihood: table(results[likelihood]) for likelihood in LIKELIHOODS}
    parts |= {
        "default": f"{max(own['finite_difference default'] for own in single):.0e}",
        "best": f"{max(min(e for way, e in own.items() if 'finite' in way) for own in single):.0e}",
        "weights": f"{results['parameters']:,}",
    }
    parts |= {name: str(results[name]) for name in ("pictures", "size", "runs")}
    record.write_page(NAME, __file__, parts)


def table(own: Row) -> str:
    """A row for each way and step."""
    errors = own["relative_error"]
    rows = []
    for name in dict.fromkeys(name for precision in PRECISIONS for name in errors[precision]):
        way = EXACT.get(name, name.replace("finite_difference", "finite difference, step"))
        row = {"way": way}
        for precision in PRECISIONS:
            row[f"error {precision}"] = f"{errors[precision][name]:.0e}" if name in errors[precision] else ""
        seconds = own["seconds"].get(name.removesuffix(" default"))
        rows.append({**row, "ms float32": "" if seconds is None else f"{1e3 * seconds:.0f}"})
    return record.markdown_table(rows)


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
