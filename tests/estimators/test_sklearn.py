"""scikit-learn's own checks of both estimators, on vectors through a small perceptron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from tangentune import Backbone, TangentClassifier, TangentRegressor

WIDTH = 32


class AnyWidth(nn.Module):
    """A perceptron for vectors of any length: padded with zeros or cut to 32 numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.last = nn.Linear(WIDTH, 24), nn.Linear(24, 16)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x[:, :WIDTH], (0, max(0, WIDTH - x.shape[1])))
        return self.last(torch.tanh(self.inner(x)))


BACKBONE = Backbone(AnyWidth().double())
QUICK: dict[str, Any] = {
    "metric_power": 0.0, "body_scale": 1.0, "normalize": False, "probe_space": "isotropic", "damping": 0.1,
    "outer_steps": 0,
}  # fmt: skip
ESTIMATORS = [
    TangentClassifier(BACKBONE, **QUICK),
    TangentRegressor(BACKBONE, **QUICK),
    TangentClassifier(BACKBONE, metric_power=0.25, normalize=True, outer_steps=0),
    TangentRegressor(BACKBONE, metric_power=0.25, normalize=True),
]


def expected(estimator: Any) -> dict[str, str]:
    """Checks that must fail, and why."""
    failures = {
        "check_estimators_overwrite_params": "joblib hashes a torch tensor by its storage, so even an untouched copy "
        "of a network hashes differently; test_nothing_given_is_changed holds what is meant",
    }
    if isinstance(estimator, TangentClassifier) or estimator.damping == "loo":
        failures["check_sample_weight_equivalence_on_dense_data"] = (
            "leaving out one of two equal pictures leaves the other: choices and calibration by leave-one-out take a "
            "weight for one picture; the solution itself is equivalent, which test_weight_two_is_a_picture_twice holds"
        )
    return failures


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    ESTIMATORS,
    expected_failed_checks=expected,
)
def test_sklearn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
