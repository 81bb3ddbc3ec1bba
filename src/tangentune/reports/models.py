# ruff: noqa: D102 (the estimators document their attributes)
"""What pages look at in a fitted model: public attributes of `TangentClassifier` and `TangentRegressor`, no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

from numpy.typing import NDArray

from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


class ReportedModel(Protocol):
    """A fitted estimator."""

    likelihood: str

    @property
    def ids_(self) -> list[str]: ...
    @property
    def targets_(self) -> NDArray[Any]: ...
    @property
    def pictures_(self) -> Pictures: ...
    @property
    def backbone_(self) -> Backbone: ...
    @property
    def loo_predictions_(self) -> NDArray[Any]: ...
    @property
    def damping_(self) -> float: ...
    @property
    def damping_path_(self) -> dict[str, NDArray[Any]]: ...
    @property
    def block_shares_(self) -> dict[str, float]: ...
    @property
    def block_scales_(self) -> dict[str, float]: ...
    @property
    def selection_(self) -> Sequence[dict[str, Any]]: ...
    @property
    def outer_steps_(self) -> int: ...
    @property
    def source_(self) -> dict[str, Any] | None: ...


class ReportedClassifier(ReportedModel, Protocol):
    """A fitted classifier."""

    @property
    def classes_(self) -> NDArray[Any]: ...
    @property
    def loo_proba_(self) -> NDArray[Any]: ...
    @property
    def temperature_(self) -> float: ...
    def predict_proba(self, X: Any) -> NDArray[Any]: ...


class ReportedRegressor(ReportedModel, Protocol):
    """A fitted regressor."""

    @property
    def noise_(self) -> NDArray[Any]: ...


def is_classifier(model: ReportedModel) -> TypeGuard[ReportedClassifier]:
    """Whether a fitted model names classes; otherwise it predicts numbers."""
    return hasattr(model, "classes_")
