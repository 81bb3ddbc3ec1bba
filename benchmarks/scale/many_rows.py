"""A million rows of 4,096 features, shard by shard: sums, solution, and exact leave-one-out of all.

    python -m benchmarks.scale.many_rows                 # about an hour, one thread
    python -m benchmarks.scale.many_rows --rows 100000   # a part of it

The rows are drawn anew for each pass, in place of a file of 16 GB; drawing them is not timed. The rate is that of the
two passes against a product of this machine's own in float64, measured in the same process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor

from benchmarks.record import Row, fill
from benchmarks.study import begin, study_parser
from tangentune.solvers.sums import TangentSums

NAME, WIDTH, CLASSES, SHARD, DAMPINGS = "many_rows", 4096, 10, 8192, 3


def shards(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (k, D) in single precision, with classes that they tell in part."""
    aim = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(1))
    for start in range(0, count, SHARD):
        generator = torch.Generator().manual_seed(2 + start)
        rows = torch.randn(min(SHARD, count - start), WIDTH, generator=generator)
        noise = WIDTH**0.5 * torch.randn(len(rows), CLASSES, generator=generator)
        yield rows, torch.nn.functional.one_hot((rows @ aim + noise).argmax(1), CLASSES)


def measure(key: Row) -> Row:
    """Seconds of each step, the rate, the highest memory, and the leave-one-out error along dampings."""
    torch.set_num_threads(key["threads"])
    square = torch.randn(2048, WIDTH, dtype=torch.float64)
    spent = {"product": min(_seconds(lambda: square.T @ square) for _ in range(3))}
    rate, process, highest = 2048 * WIDTH**2 / spent["product"], psutil.Process(), 0
    total: TangentSums | None = None
    spent |= {"sums": 0.0, "leave-one-out": 0.0}
    for rows, targets in shards(key["rows"]):
        start = time.process_time()
        part = TangentSums.of(rows, targets, NAME)
        total = part if total is None else total + part
        spent["sums"] += time.process_time() - start
        highest = max(highest, process.memory_info().rss)
    assert total is not None
    start = time.process_time()
    factor = total.factor()
    spent["factor"] = time.process_time() - start
    dampings = factor.mean_eigenvalue * torch.logspace(-3, -1, DAMPINGS, dtype=torch.float64)
    errors = torch.zeros(DAMPINGS, dtype=torch.float64)
    for rows, targets in shards(key["rows"]):
        start = time.process_time()
        errors += len(rows) / key["rows"] * factor.loo_errors(rows, targets, dampings)
        spent["leave-one-out"] += time.process_time() - start
        highest = max(highest, process.memory_info().rss)
    work = {"sums": key["rows"] * WIDTH**2, "leave-one-out": key["rows"] * WIDTH**2}
    rates = {name: count / spent[name] / rate for name, count in work.items()}
    return {"seconds": spent, "rate_of_product": rates, "peak_bytes": highest, "loo_errors": errors.tolist()}


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and write docs/results/many_rows.json."""
    parser = study_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = begin(parser)
    fill(NAME, [{"rows": given.rows, "threads": 1}], measure)


if __name__ == "__main__":
    main()
