"""Calibration: tangentune against laplace-torch and temperature scaling, `python -m benchmarks.calibration_study`.

Each group of methods runs in a process of its own, on one thread, under a limit of processor seconds; what is measured
already is not measured again, so the study may be stopped, and new groups are added by running it once more. The
fine-tuned networks that many methods start from are trained once a draw and kept in the cache; their cost counts for
each. `--groups`, `--datasets` and `--seeds` choose; `--list` names the groups; `--page` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks import record
from benchmarks.calibration_data import SEEDS, split_of
from benchmarks.calibration_methods import Answer, groups
from benchmarks.calibration_networks import is_tuned, tune
from benchmarks.calibration_page import write_page
from benchmarks.laplace_peer import APPROXIMATIONS
from tangentune import metrics
from tangentune._files import plain
from tangentune.errors import first_line

NAME = "calibration"
LIMIT = 1800  # processor seconds of a group; those of the networks not counted


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", default=",".join(SEEDS))
    parser.add_argument("--seeds", type=int, help="draws; default: each data set's own number")
    parser.add_argument("--groups", help="beginnings of names, separated by semicolons; default: all")
    parser.add_argument("--limit", type=int, default=LIMIT, help="processor seconds of a group")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--child", nargs=4, metavar=("GROUP", "DATASET", "SEED", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        _child(given.child[0], given.child[1], int(given.child[2]), Path(given.child[3]), given.limit)
    elif given.list:
        print("\n".join(groups()))
    else:
        if not given.page:
            _run(given.datasets.split(","), given.seeds, (given.groups or "").split(";"), given.limit)
        write_page()


def _run(datasets: list[str], seeds: int | None, beginnings: Sequence[str], limit: int) -> None:
    names = [name for name in groups() if any(name.startswith(start) for start in beginnings)]
    for name in names:
        for dataset in datasets:
            draws = 1 if _is_slow(name) else SEEDS[dataset]
            for seed in range(draws if seeds is None else min(seeds, draws)):
                key = {"dataset": dataset, "seed": seed, "group": name}
                first = record.done(NAME, key | {"seed": 0}, "groups")
                if first is not None and first["failed"] and not first["rows"]:
                    break  # it fails alike on every draw
                if record.done(NAME, key, "groups") is None:
                    print(key, flush=True)
                    _measure(key, limit)


def _is_slow(group: str) -> bool:
    """What takes many minutes is tried on the first draw only."""
    return any(group.startswith(f"laplace {name}") and each.slow for name, each in APPROXIMATIONS.items())


def _measure(key: dict[str, Any], limit: int) -> None:
    """One group in a process of its own; its rows and how it ended are recorded."""
    dataset, seed, group = key["dataset"], key["seed"], key["group"]
    if not is_tuned(dataset, seed):
        tune(dataset, seed)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        call = [sys.executable, "-m", "benchmarks.calibration_study", "--limit", str(limit), "--child"]
        code = subprocess.run([*call, group, dataset, str(seed), file.name], check=False).returncode
        lines = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
    rows, problems = [row for row in lines if "method" in row], [row["failed"] for row in lines if "failed" in row]
    if code == -signal.SIGXCPU:
        problems.append(f"took more than {limit:,} processor seconds")
    elif code and not problems:
        print(f"{group} ended with code {code}; not recorded", flush=True)
        return
    for row in rows:
        record.append(NAME, {"dataset": dataset, "seed": seed, "method": row.pop("method")}, {"group": group, **row})
    record.append(NAME, key, {"failed": "; ".join(problems) or None, "rows": len(rows)}, "groups")


def _child(group: str, dataset: str, seed: int, path: Path, limit: int) -> None:
    """Write a line for each answer as it comes, and one for what went wrong."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
    warnings.simplefilter("ignore")
    labels = split_of(dataset, seed).test.labels
    assert labels is not None
    with path.open("a") as file:
        try:
            for answer in groups()[group](dataset, seed):
                finite = np.isfinite(answer.test).all() and np.isfinite(answer.foreign).all()
                line = _row(answer, labels) if finite else {"failed": f"{answer.method}: probabilities are not finite"}
                print(json.dumps(plain(line)), file=file, flush=True)
        except Exception as error:
            traceback.print_exc()
            if not group.startswith("laplace"):
                raise  # a fault of ours is mended, not reported
            print(json.dumps({"failed": f"{type(error).__name__}: {first_line(error)}"}), file=file, flush=True)


def _row(answer: Answer, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Scores of an answer; probabilities in one precision, so that a probability of zero costs all the same."""
    test, foreign = np.asarray(answer.test, np.float32), np.asarray(answer.foreign, np.float32)
    own = None if answer.strangeness is None else _auroc(*answer.strangeness)
    return {
        "method": answer.method,
        "family": answer.family,
        "accuracy": metrics.accuracy(labels, test.argmax(1)),
        "nll": metrics.nll(labels, test),
        "ece": metrics.ece(labels, test),
        "brier": metrics.brier(labels, test),
        "auroc_probability": _auroc(-test.max(1), -foreign.max(1)),
        "auroc_entropy": _auroc(_entropy(test), _entropy(foreign)),
        "auroc_own": own,
        "fit": answer.fit,
        "predict": answer.predict,
        "facts": answer.facts,
    }


def _entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    table = probabilities.astype(np.float64)
    return -(table * np.log(np.clip(table, 1e-300, None))).sum(1)


def _auroc(test: NDArray[Any], foreign: NDArray[Any]) -> float:
    """Chance that a foreign picture scores higher than a test picture."""
    known = np.concatenate([np.zeros(len(test)), np.ones(len(foreign))])
    return float(roc_auc_score(known, np.concatenate([test, foreign])))


if __name__ == "__main__":
    main()
