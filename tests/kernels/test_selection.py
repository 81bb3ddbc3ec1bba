"""What selection chooses, what it must respect, and what it must always have tried."""

from __future__ import annotations

import pytest
import torch
from reference import closeness, dense_solve, refit_loo, unit
from torch import Tensor

from tangentune.kernels.choice import (
    FAR,
    LEAST_GAIN,
    RELATIVE_DAMPINGS,
    FixedChoices,
    KernelCandidates,
    KernelChoice,
    block_scales,
    combine,
    damping_path,
    edge_words,
    first_choices,
    learn_scales,
    probe_loo,
    scale_words,
    score,
    search,
    solution_of,
    unit_scale,
)
from tangentune.solvers.ridge import factor_ridge, log_evidence, loo_errors
from tangentune.solvers.system import build


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HEAD, BODY = normal(40, 6), {"0": normal(40, 30, seed=1), "1": 2 * normal(40, 20, seed=2), "2": normal(40, 9, seed=3)}


def problem(of: str = "both", weights: Tensor | None = None) -> KernelCandidates:
    """Targets that the head explains, or one of the body's blocks, or both."""
    signal = {"head": HEAD[:, :2], "body": BODY["2"][:, :2], "both": HEAD[:, :2] + BODY["2"][:, :2], "nothing": 0}[of]
    targets = signal + 0.3 * normal(40, 2, seed=9)
    blocks = {name: rows @ rows.T for name, rows in BODY.items()}
    return KernelCandidates(
        HEAD @ HEAD.T, blocks, targets, torch.ones(40, dtype=torch.float64) if weights is None else weights
    )


def test_block_scales_have_mean_one_and_grow_with_depth() -> None:
    scales = block_scales(["a", "b", "c"], 3.0)
    assert sum(scales.values()) == pytest.approx(3.0)
    assert scales["c"] / scales["a"] == pytest.approx(torch.tensor(3.0).exp().item())
    assert scales["b"] / scales["a"] == pytest.approx(torch.tensor(1.5).exp().item())
    assert block_scales(["a", "b"], 0.0) == {"a": 1.0, "b": 1.0}
    assert block_scales(["only"], 4.0) == {"only": pytest.approx(1.0)}
    assert block_scales([], 4.0) == {}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("slope", [0.0, 1.5])
def test_combined_kernel_is_that_of_explicit_features(normalize: bool, slope: float) -> None:
    scales = block_scales(list(BODY), slope)
    body = torch.cat([scale**0.5 * BODY[block] for block, scale in scales.items()], 1)
    head, body = (unit(HEAD), unit(body)) if normalize else (HEAD, body)
    features = torch.cat([head, 0.7**0.5 * body], 1)
    got = combine(problem(), KernelChoice(0.0, normalize, 0.7, slope, "0"))
    assert closeness(got, features @ features.T) < 1e-12


@pytest.mark.parametrize("normalize", [False, True])
def test_body_scale_zero_is_the_linear_probe(normalize: bool) -> None:
    rows = unit(HEAD) if normalize else HEAD
    assert closeness(combine(problem(), KernelChoice(0.0, normalize, 0.0)), rows @ rows.T) < 1e-12


def test_unit_scale_gives_head_and_body_the_same_trace() -> None:
    kernels = problem()
    body = sum(float(kernel.trace()) for kernel in kernels.blocks.values())
    assert unit_scale(kernels, False) * body == pytest.approx(float(kernels.head.trace()))
    assert unit_scale(kernels, True) == 1.0
    dead = KernelCandidates(kernels.head, {"0": torch.zeros(40, 40)}, kernels.targets, kernels.weights)
    assert unit_scale(dead, False) == 1.0


@pytest.mark.parametrize("of", ["head", "body", "both", "nothing"])
@pytest.mark.parametrize("criterion", ["loo", "evidence"])
def test_the_winner_is_the_best_of_what_was_tried_and_beats_the_probe(of: str, criterion: str) -> None:
    kernels = problem(of)
    best, tried = search(kernels, 0.25, FixedChoices(), criterion)
    assert best.criterion == min(scored.criterion for scored in tried)
    assert len({scored.choice for scored in tried}) == len(tried)
    assert all(scored.choice.power == 0.25 for scored in tried)
    for normalize in (False, True):  # the probe, scored here by other means
        factor = factor_ridge(combine(kernels, KernelChoice(0.25, normalize, 0.0)), kernels.weights)
        grid = RELATIVE_DAMPINGS * factor.mean_eigenvalue
        values = loo_errors if criterion == "loo" else lambda *a: -log_evidence(*a)
        assert best.criterion <= float(values(factor, kernels.targets, grid).min()) + 1e-12


def test_the_signal_is_found_where_it_is() -> None:
    head, _ = search(problem("head"), 0.0, FixedChoices())
    body, _ = search(problem("body"), 0.0, FixedChoices())
    unit_of = lambda scored: unit_scale(problem(), scored.choice.normalize)
    assert body.choice.body_scale / unit_of(body) > 2
    assert body.choice.slope > 0  # the last block holds it
    assert head.choice.body_scale / unit_of(head) < 1


def test_refinement_never_hurts() -> None:
    coarse, few = search(problem("body"), 0.0, FixedChoices(), refine=False)
    fine, many = search(problem("body"), 0.0, FixedChoices())
    assert fine.loo_error <= coarse.loo_error
    assert len(many) > len(few)


def test_many_pictures_begin_with_a_part() -> None:
    head, body = normal(780, 6), normal(780, 9, seed=3)
    targets = body[:, :2] + 0.5 * normal(780, 2, seed=9)
    many = KernelCandidates(head @ head.T, {"0": body @ body.T}, targets, torch.ones(780, dtype=torch.float64))
    best, tried = search(many, 0.0, FixedChoices(normalize=False))
    on_all = [scored for scored in tried if scored.pictures == 780]
    assert {scored.pictures for scored in tried} == {390, 780}
    assert best.criterion == min(scored.criterion for scored in on_all)
    probe = next(scored for scored in on_all if scored.choice.body_scale == 0)
    assert best.loo_error < probe.loo_error
    rest = torch.arange(780) != 5
    dual, intercept = dense_solve(many.head[rest][:, rest], targets[rest], probe.damping)
    left_out, expected = probe_loo(many, tried), intercept + many.head[5, rest] @ dual
    assert left_out is not None
    assert closeness(left_out[5], expected) < 1e-8


@pytest.mark.parametrize("fixed", [
    FixedChoices(normalize=True), FixedChoices(normalize=False), FixedChoices(body_scale=0.3),
    FixedChoices(damping=0.7), FixedChoices(body_scale=0.0), FixedChoices(True, 2.0, 0.1),
])  # fmt: skip
def test_fixed_numbers_are_respected(fixed: FixedChoices) -> None:
    _, tried = search(problem(), 0.0, fixed)
    for scored in tried:
        assert fixed.normalize in (None, scored.choice.normalize)
        assert fixed.body_scale in (None, scored.choice.body_scale)
        assert fixed.damping in (None, scored.damping)
    seen = {scored.choice.normalize for scored in tried}
    assert seen == ({True, False} if fixed.normalize is None else {fixed.normalize})
    assert (len({scored.choice.body_scale for scored in tried}) > 2) == (fixed.body_scale is None)


def test_without_blocks_there_is_only_the_probe() -> None:
    kernels = problem()
    best, tried = search(KernelCandidates(kernels.head, {}, kernels.targets, kernels.weights), 0.0, FixedChoices())
    assert {scored.choice.body_scale for scored in tried} == {0.0}
    assert len(tried) == 2
    assert best.choice.body_scale == 0.0


def test_every_grid_holds_the_probe() -> None:
    for normalize in (None, True, False):
        choices = first_choices(problem(), 0.0, FixedChoices(normalize=normalize), (0.0, 3.0))
        kinds = {True, False} if normalize is None else {normalize}
        assert {choice.normalize for choice in choices if choice.body_scale == 0} == kinds


@pytest.mark.parametrize("weighted", [False, True])
def test_a_score_is_what_a_refit_gives(weighted: bool) -> None:
    weights = torch.rand(40, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.2
    kernels = problem(weights=weights if weighted else None)
    choice = KernelChoice(0.0, False, 0.4, 1.5, "0")
    scored, kernel = score(kernels, choice, None, "loo"), combine(kernels, choice)
    factor = factor_ridge(kernel, kernels.weights)
    left_out = refit_loo(kernel, kernels.targets, scored.damping, kernels.weights)
    squares = (kernels.targets - left_out).square().sum(1)
    assert scored.loo_error == pytest.approx(float((kernels.weights @ squares) / kernels.weights.sum()), rel=1e-9)
    assert scored.relative_damping == pytest.approx(scored.damping / factor.mean_eigenvalue)
    for damping in (RELATIVE_DAMPINGS[::6] * factor.mean_eigenvalue).tolist():
        assert score(kernels, choice, damping, "loo").loo_error >= scored.loo_error * (1 - 1e-12)


def test_evidence_is_maximised_and_loo_still_reported() -> None:
    kernels, choice = problem(), KernelChoice(0.0, False, 0.4)
    scored, factor = score(kernels, choice, None, "evidence"), factor_ridge(combine(kernels, choice), kernels.weights)
    grid = RELATIVE_DAMPINGS * factor.mean_eigenvalue
    values = log_evidence(factor, kernels.targets, grid)
    assert scored.criterion == pytest.approx(-float(values.max()))
    at = torch.tensor([scored.damping], dtype=torch.float64)
    assert scored.loo_error == pytest.approx(float(loo_errors(factor, kernels.targets, at)[0]))


def test_a_row_of_the_table_says_everything() -> None:
    scored = score(problem(), KernelChoice(0.5, True, 0.4, 1.5, "0"), 0.2, "loo")
    row = scored.row()
    assert (row["metric_power"], row["normalize"], row["body_scale"], row["damping"]) == (0.5, True, 0.4, 0.2)
    assert (row["first_block"], row["block_slope"]) == ("0", 1.5)
    assert row["loo_error"] == scored.loo_error


def test_a_kernel_of_zeros_does_not_stop_the_search() -> None:
    kernels = problem()
    dead = KernelCandidates(torch.zeros(40, 40), {"0": torch.zeros(40, 40)}, kernels.targets, kernels.weights)
    best, _ = search(dead, 0.0, FixedChoices())
    assert torch.isfinite(torch.tensor(best.loo_error))


def smooth(noise: float) -> tuple[KernelCandidates, KernelChoice]:
    """A kernel of falling eigenvalues, and targets drawn from it."""
    rows = normal(40, 40) * torch.logspace(0, -5, 40, dtype=torch.float64)
    targets = rows @ normal(40, 2, seed=5) + noise * normal(40, 2, seed=9)
    return KernelCandidates(rows @ rows.T, {}, targets, torch.ones(40, dtype=torch.float64)), KernelChoice(0, False, 0)


@pytest.mark.parametrize("criterion", ["loo", "evidence"])
def test_a_damping_at_the_end_of_the_grid_is_looked_for_beyond_it(criterion: str) -> None:
    kernels, choice = smooth(0.0)
    scored, factor = score(kernels, choice, None, criterion), factor_ridge(kernels.head)
    assert 1e-6 * 0.999 < scored.relative_damping < 1e-4
    values = loo_errors if criterion == "loo" else lambda *a: -log_evidence(*a)
    first = values(factor, kernels.targets, RELATIVE_DAMPINGS * factor.mean_eigenvalue)
    assert int(first.argmin()) == 0
    assert scored.criterion < float(first.min())
    dampings, errors, criteria = damping_path(factor, kernels.targets, criterion)
    assert scored.damping == float(dampings[int(criteria.argmin())])
    assert bool((dampings.diff() > 0).all())
    assert torch.allclose(errors, loo_errors(factor, kernels.targets, dampings))


def test_noise_is_damped_beyond_the_grid_and_a_choice_inside_it_stays() -> None:
    kernels, choice = problem("nothing"), KernelChoice(0.0, False, 0.0)
    scored = score(kernels, choice, None, "loo")
    factor = factor_ridge(kernels.head)
    inside, _ = smooth(0.3)
    dampings, errors, _ = damping_path(factor_ridge(inside.head), inside.targets, "loo")
    assert len(dampings) == len(errors) == len(RELATIVE_DAMPINGS)
    first = loo_errors(factor, kernels.targets, RELATIVE_DAMPINGS * factor.mean_eigenvalue)
    gained = scored.loo_error < float(first.min()) * (1 - LEAST_GAIN)
    assert gained == (scored.relative_damping > 100.001)


def test_a_choice_at_an_end_is_told() -> None:
    for relative, words in ((1e-6, "the least that"), (1e-4, "less was"), (100.0, "more was"), (1e4, "the most that")):
        assert edge_words(relative).startswith(words)
    assert edge_words(1.0) == ""
    rows = normal(40, 30)
    targets = rows @ normal(30, 2, seed=5)
    other = normal(40, 3, seed=8)  # a head that says nothing of the targets
    kernels = KernelCandidates(other @ other.T, {"0": rows @ rows.T}, targets, torch.ones(40).double())
    best, _ = search(kernels, 0.0, FixedChoices(normalize=True))
    assert best.choice.body_scale > FAR
    assert scale_words(best.choice.body_scale, best.choice.normalize).startswith("the most")
    assert scale_words(1 / 1024, True).startswith("the least")
    assert not any((scale_words(1024.0, False), scale_words(0.0, True), scale_words(0.25, True)))


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_equal_rows_have_a_damping_that_can_be_solved_for(noise: float) -> None:
    rows = torch.ones(10, 4, dtype=torch.float64) + noise * normal(10, 4)
    kernels = KernelCandidates(rows @ rows.T, {}, torch.eye(2).double().repeat(5, 1), torch.ones(10).double())
    scored = score(kernels, KernelChoice(0.0, False, 0.0), None, "loo")
    assert scored.damping >= 1e-6 * 4
    assert torch.isfinite(solution_of(kernels, scored).loo).all()


@pytest.mark.filterwarnings("ignore:.*is singular to rounding")
@pytest.mark.parametrize("share", [1e-12, 1e-8, 1e-4])
@pytest.mark.parametrize("criterion", ["loo", "evidence"])
def test_no_damping_is_chosen_that_rounding_of_the_kernel_swallows(share: float, criterion: str) -> None:
    """Rows that are nearly the same, in float32: what tells them apart is rounding, in part or as a whole."""
    rows = 4 * torch.ones(12, 40, dtype=torch.float64) + 4 * share**0.5 * normal(12, 40)
    noise = 1e-6 * normal(12, 12, seed=3)
    targets = torch.eye(2).double().repeat(6, 1)
    kernel = rows @ rows.T + noise + noise.T
    kernels = KernelCandidates(kernel, {"0": 3 * kernel}, targets, torch.ones(12).double())
    best, tried = search(kernels, 0.0, FixedChoices(), criterion)
    if criterion == "evidence" and best.choice.body_scale > 0:
        tried = [*tried, learn_scales(kernels, best)]
    for scored in tried:
        build(combine(kernels, scored.choice), targets, scored.damping)
    assert (min(float(torch.linalg.eigvalsh(kernel)[0]), 0) < 0) == (share < 1e-4)
