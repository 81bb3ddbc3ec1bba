"""The pass over all pictures: equal to scoring everything in float64, however it is cut."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tangentune.errors import InputError
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.picking import first_of_each, score_rows
from tangentune.methods.source_selection.rankings import Scorer, rank
from tangentune.methods.source_selection.settings import SelectionSettings

COUNT, WIDTH, TARGETS = 1000, 16, 6
GENERATOR = torch.Generator().manual_seed(0)
MEANS = torch.randn(12, WIDTH, generator=GENERATOR)
ROWS = (MEANS[torch.randint(12, (COUNT,), generator=GENERATOR)] + torch.randn(COUNT, WIDTH, generator=GENERATOR)) * (
    0.1 + 9 * torch.rand(COUNT, 1, generator=GENERATOR)
)
TARGET_MEANS = MEANS[:TARGETS] + 0.5 * torch.randn(TARGETS, WIDTH, generator=GENERATOR)


def transport(source: Tensor, **settings: Any) -> Scorer:
    made = rank(SelectionSettings(budget=1, **settings), source.double(), TARGET_MEANS.double()).scorer
    assert made is not None
    return made


SCORERS: dict[str, Scorer] = {
    "uot": transport(MEANS),
    "uot, small scale": transport(MEANS, cost_scale=0.005),
    "uot, free source": transport(MEANS, tau_source=0, tau_target=math.inf, cost_scale=0.01),
    "nearest": Scorer(normalize(TARGET_MEANS, dim=1)),
}


def dense(scorer: Scorer) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, shares and what each row gives each target, of all rows at once in float64."""
    weights = None if scorer.log_weights is None else scorer.log_weights.double()
    exact = replace(scorer, prototypes=scorer.prototypes.double(), log_weights=weights)
    cosines = normalize(ROWS.double(), dim=1) @ exact.prototypes.T
    shares, scores = exact.shares(cosines), exact.scores(cosines)
    return scores, shares, shares * scores.exp()[:, None] if scorer.has_mass else shares


def scored(
    rows: Tensor | Path, scorer: Scorer, chunk: int = 64, of: Tensor | None = None, unit: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    return score_rows(open_features(rows), scorer, of=of, unit=unit, chunk=chunk)


@pytest.mark.parametrize("name", SCORERS)
def test_the_pass_equals_scoring_everything_in_float64(name: str) -> None:
    scorer = SCORERS[name]
    scores, shares, masses = dense(scorer)
    found, best, given = scored(ROWS, scorer)
    tolerance = 2e-6 / scorer.temperature if scorer.has_mass else 1e-6
    torch.testing.assert_close(found.double(), scores, rtol=0, atol=tolerance)
    assert torch.equal(best, shares.argmax(1))
    torch.testing.assert_close(given.exp(), masses.sum(0), rtol=10 * tolerance, atol=0)
    if scorer.has_mass:
        of, unit = torch.arange(COUNT) % 5, float(scores.max())
        by_class = torch.zeros(5, TARGETS).double().index_add_(0, of, masses) * math.exp(-unit)
        given = scored(ROWS, scorer, of=of, unit=unit)[2]
        torch.testing.assert_close(given, by_class, rtol=10 * tolerance, atol=1e-30)


def test_the_first_of_each_target_are_told() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        targets, quota = torch.from_numpy(rng.integers(0, 4, int(rng.integers(1, 60)))), int(rng.integers(0, 9))
        expected = [int((targets[:i] == target).sum()) < quota for i, target in enumerate(targets)]
        assert first_of_each(targets, quota, 4).tolist() == expected


def test_the_result_does_not_depend_on_steps_or_shards(tmp_path: Path) -> None:
    scorer = SCORERS["uot"]
    for i, part in enumerate(ROWS.split([1, 300, 699])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    first = scored(ROWS, scorer)
    for source, chunk in ((ROWS, 37), (tmp_path, 512), (tmp_path, 1)):
        other = scored(source, scorer, chunk)
        assert torch.equal(first[1], other[1])
        torch.testing.assert_close(first[0], other[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(first[2], other[2], rtol=0, atol=1e-5)


def test_what_cannot_be_scored_is_refused_in_one_sentence() -> None:
    broken = ROWS.clone()
    broken[700] = torch.nan
    with pytest.raises(InputError, match="row 700 hold NaN"):
        scored(broken, SCORERS["uot"])
    with pytest.raises(InputError, match="is empty"):
        scored(ROWS[:0], SCORERS["uot"])


def test_no_mass_is_lost_where_float32_would_overflow() -> None:
    """Rows far nearer to the targets than the sources that the plan was solved for."""
    scorer = transport(-TARGET_MEANS, tau_source=0, tau_target=math.inf, cost_scale=0.005)
    given = scored(ROWS, scorer)[2]
    assert bool(torch.isfinite(given).all())
    assert float(given.max()) > 100  # exp of it is beyond float32
    scores, shares, _ = dense(scorer)
    expected = torch.logsumexp(shares.log() + scores[:, None], 0)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-3)
