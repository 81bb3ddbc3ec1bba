"""Factorisations: the plain call where it succeeds, something that works where it does not, never a raw error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import scipy.linalg
import torch
from torch import Tensor

from tangentune.errors import InputError, SingularError
from tangentune.solvers.factorisation import cholesky, complement, eigh, inverse, solve, svd

F64 = torch.float64


def positive(*shape: int, rank: int | None = None, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Positive semi-definite matrices (..., n, n) of some rank."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, shape[-1] if rank is None else rank, generator=generator, dtype=F64)
    return scale * rows @ rows.mT


def failing(*_: Any, **__: Any) -> Any:
    raise torch.linalg.LinAlgError("the algorithm failed to converge")


@pytest.mark.parametrize("shape", [(7,), (3, 5)], ids=str)
def test_what_succeeds_has_the_bits_of_the_plain_call(shape: tuple[int, ...]) -> None:
    a, right = positive(*shape), positive(*shape, seed=1)[..., :2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ours, plain in (
            (eigh(a, "it"), torch.linalg.eigh(a)),
            (svd(a, "it"), torch.linalg.svd(a, full_matrices=False)),
            ((cholesky(a, "it"),), (torch.linalg.cholesky(a),)),
            ((inverse(a, "it"),), (torch.linalg.inv(a),)),
            ((solve(a, right, "it"),), (torch.linalg.solve(a, right),)),
            ((solve(a, right.mT, "it", left=False),), (torch.linalg.solve(a, right.mT, left=False),)),
        ):
            assert all(torch.equal(one, two) for one, two in zip(ours, plain, strict=True))


def test_float32_is_factored_in_float64() -> None:
    a = positive(30, rank=4).float()
    values, vectors = eigh(a, "it")
    assert values.dtype == vectors.dtype == F64
    assert float((vectors * values @ vectors.mT - a.double()).abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(9,), (2, 9)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rank", [0, 1, 3, 9])
def test_another_driver_takes_over(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], scale: float, rank: int
) -> None:
    a = positive(*shape, rank=rank, scale=scale)
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    monkeypatch.setattr(torch.linalg, "svd", failing)
    values, vectors = eigh(a, "it")
    assert torch.allclose(vectors * values[..., None, :] @ vectors.mT, a, rtol=0, atol=1e-12 * scale)
    wide = a[..., :4, :]
    left, singular, right = svd(wide, "it")
    assert torch.allclose(left * singular[..., None, :] @ right, wide, rtol=0, atol=1e-12 * scale)


def test_where_all_drivers_fail_a_jitter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    a, whole = positive(6), scipy.linalg.eigh

    def picky(matrix: Any, driver: str) -> Any:
        if (matrix == a.numpy()).all():
            raise scipy.linalg.LinAlgError
        return whole(matrix, driver=driver)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    monkeypatch.setattr("tangentune.solvers.factorisation.EIGH_DRIVERS", [lambda own: picky(own, "ev")])
    with pytest.warns(RuntimeWarning, match="the metric is singular to rounding; up to .*e-1[0-9] was added"):
        values, _ = eigh(a, "the metric")
    assert torch.allclose(values, torch.from_numpy(whole(a.numpy())[0]))
    monkeypatch.setattr("tangentune.solvers.factorisation.EIGH_DRIVERS", [failing_driver])
    with pytest.raises(SingularError, match="the metric cannot be factored"):
        eigh(a, "the metric")


def failing_driver(_: Any) -> Any:
    raise scipy.linalg.LinAlgError


FACTOR: dict[str, Callable[[Tensor], Any]] = {
    "cholesky": lambda a: cholesky(a, "the kernel"),
    "inverse": lambda a: inverse(a, "the kernel"),
    "solve": lambda a: solve(a, torch.ones_like(a[..., :1]), "the kernel"),
}


@pytest.mark.parametrize("name", FACTOR)
def test_a_singular_matrix_gets_a_jitter_that_is_told(name: str) -> None:
    singular = torch.ones(5, 5, dtype=F64)
    with pytest.warns(RuntimeWarning, match="the kernel is singular to rounding; up to 2.0e-1[0-9] was added"):
        found = FACTOR[name](singular)
    assert bool(torch.isfinite(found).all())
    stacked = torch.stack([positive(5), singular])
    with pytest.warns(RuntimeWarning, match="was added to its diagonal"):
        both = FACTOR[name](stacked)
    assert torch.equal(both[0], FACTOR[name](stacked[:1])[0])  # nothing is added to what needs nothing


def test_what_must_stay_as_it_is_is_refused() -> None:
    with pytest.raises(SingularError, match="the kernel cannot be factored in float64"):
        cholesky(torch.ones(5, 5, dtype=F64), "the kernel", as_it_is=True)
    with pytest.raises(SingularError, match="use a larger damping"):
        cholesky(-torch.eye(3, dtype=F64), "the kernel")


@pytest.mark.parametrize("name", [*FACTOR, "eigh", "svd", "complement"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_in_a_sentence(name: str, bad: float) -> None:
    matrix = positive(4)
    matrix[2, 1] = bad
    others = {"eigh": eigh, "svd": svd, "complement": complement}
    with pytest.raises(InputError, match=r"the kernel holds NaN or infinite values; look for broken pictures"):
        FACTOR[name](matrix) if name in FACTOR else others[name](matrix, "the kernel")


def test_the_complement_is_orthogonal_to_the_basis() -> None:
    basis = torch.ones(2, 6, 1, dtype=F64)
    free = complement(basis, "the mean")
    assert free.shape == (2, 6, 5)
    assert float((basis.mT @ free).abs().max()) < 1e-14
    assert float((free.mT @ free - torch.eye(5, dtype=F64)).abs().max()) < 1e-14


def test_the_factor_can_be_differentiated() -> None:
    a = positive(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: cholesky((m + m.mT) / 2, "it"), a)
