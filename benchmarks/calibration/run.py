"""Calibration: tangentune against laplace-torch and temperature scaling, `python -m benchmarks.calibration.run`.

What is measured already is not measured again, so the study may be stopped, and new groups are added by running it once
more. The fine-tuned networks that many methods start from are trained once a draw and kept in the cache; their cost
counts for each.
"""

from __future__ import annotations

import traceback
import warnings
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from sklearn.metrics import roc_auc_score

from benchmarks import record
from benchmarks.calibration.methods import Answer, groups, split_of
from benchmarks.calibration.page import NAME, SEEDS, publish
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, study_parser
from tangentune.estimators.summary import class_scores


def main() -> None:
    """Run what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="draws; every data set has at most its own number")
    seeds = begin(parser).seeds
    warnings.simplefilter("ignore")
    every = product(groups(), SEEDS, range(seeds))
    keys = [{"dataset": d, "seed": seed, "group": group} for group, d, seed in every if seed < SEEDS[d]]
    record.fill(NAME, keys, measure, "groups")
    publish()


def measure(key: Row) -> Row:
    """The rows of one group, stored as they come, and how it ended."""
    draw, group, rows, failed = {"dataset": key["dataset"], "seed": key["seed"]}, key["group"], 0, []
    labels = labels_of(split_of(**draw).test)
    try:
        for found in groups()[group](*draw.values()):
            if np.isfinite(found.test).all() and np.isfinite(found.foreign).all():
                record.append(NAME, {**draw, "method": found.method}, {"group": group, **scored(found, labels)})
                rows += 1
            else:
                failed.append(f"{found.method}: probabilities are not finite")
    except Exception as error:
        traceback.print_exc()
        if not group.startswith("laplace"):
            raise  # a fault of ours is mended, not reported
        failed.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return {"failed": "; ".join(failed) or None, "rows": rows}


def scored(answer: Answer, labels: NDArray[np.int64]) -> Row:
    """Scores of an answer; probabilities in one precision, so that a probability of zero costs all the same."""
    test, foreign = np.asarray(answer.test, np.float32), np.asarray(answer.foreign, np.float32)
    return {
        "family": answer.family,
        **class_scores(labels, test),
        "auroc_probability": auroc(-test.max(1), -foreign.max(1)),
        "auroc_entropy": auroc(*(entr(p.astype(np.float64)).sum(1) for p in (test, foreign))),
        "auroc_own": None if answer.strangeness is None else auroc(*answer.strangeness),
        **{name: getattr(answer, name) for name in ("fit", "predict", "facts")},
    }


def auroc(test: NDArray[Any], foreign: NDArray[Any]) -> float:
    """Chance that a foreign picture scores higher than a test picture."""
    known = np.concatenate([np.zeros(len(test)), np.ones(len(foreign))])
    return float(roc_auc_score(known, np.concatenate([test, foreign])))


if __name__ == "__main__":
    main()
