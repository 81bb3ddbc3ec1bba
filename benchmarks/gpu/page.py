"""Page of what a GPU makes of the library: `python -m benchmarks.gpu.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.gpu.run import NAME
from benchmarks.record import Row, markdown_table
from benchmarks.study import publishing

NOT_MEASURED = (
    "**Nothing here was measured on a GPU**: no device was lent for it. Whoever has one is asked to run the script."
)


def publish() -> None:
    """docs/results/gpu.md."""
    found = record.load(NAME)
    record.write_page(NAME, __file__, {"found": told(found) if found else NOT_MEASURED})


def told(found: Row) -> str:
    """What was measured, as a sentence and a table."""
    card, rows, gram = found["card"], found["rows"], found["gram"]
    lines = [
        f"{card.get('name', 'The processor')}: {card['float32_gflops']:,.0f} GFLOP/s of a matrix product in float32, "
        f"{card['float64_gflops']:,.0f} in float64, {card['cholesky64_gflops']:,.0f} of a Cholesky factorisation. "
        f"Rows of {rows['rows_a_second']:,.0f} pictures a second, {rows['rows_to_forward_backward']:.2f} times what a "
        f"training step of them takes. Grams at {gram['share_of_gemm_rate']:.2f} times the rate of a matrix product."
    ]
    return "\n\n".join([*lines, markdown_table([line(row) for row in found["fits"]])])


def line(row: Row) -> Row:
    """One fit."""
    seconds = ("fit", "prediction", "forget_20", "relabel_20", "undo")
    out: Row = {"pictures": f"{row['pictures']:,}", "landmarks": f"{row['landmarks']:,}" if row["landmarks"] else "-"}
    out |= {f"{name.replace('_', ' ')} s": f"{row[f'{name}_seconds']:.3g}" for name in seconds}
    return out | {"peak GiB": f"{row['peak_bytes'] / 2**30:.1f}"}


if __name__ == "__main__":
    publishing(publish, __doc__)
