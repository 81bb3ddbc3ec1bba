"""Error bars of leading directions against the exact posterior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small import FIXED, backbone, normalised, pictures

from tangentune import TangentRegressor
from tangentune.deployment.error_bars import body_share, error_bars, stacked
from tangentune.deployment.network_graph import network_graph
from tangentune.deployment.predictor import Predictor
from tangentune.errors import InputError

NEW = pictures(6, seed=7)[0]


def fitted(**options: Any) -> TangentRegressor:
    x, y = pictures(30)
    settings: dict[str, Any] = FIXED | options
    return TangentRegressor(backbone(), **settings).fit(x, y * 1.5, sample_weight=1 + np.arange(30) % 3)


@pytest.mark.parametrize("options", [{}, {"normalize": True, "metric_power": 0.25, "augment": "flip"}])
def test_all_directions_are_exact_and_fewer_never_too_narrow(options: dict[str, Any]) -> None:
    model = fitted(**options)
    exact, x = model.predict(NEW, return_std=True)[1], normalised(NEW)
    own = model.model_.map.tangent
    graph = network_graph(own.module, own.features, x[:3])
    found = []
    for most in (31, 12, 4):
        bars = error_bars(model.fitted_, model._reader(), most)
        with torch.no_grad():
            scores, prior = Predictor(stacked(model.model_, bars.columns), graph, prior=True)(x)
        found.append(bars.deviations(scores[:, 1:], prior)[:, 0].numpy())
    np.testing.assert_allclose(found[0], exact, rtol=1e-7)
    assert (found[1] >= exact * (1 - 1e-9)).all()
    assert (found[2] > found[1]).all()


def test_scales_that_lengths_do_not_share_are_refused() -> None:
    own = fitted().model_.map
    one = replace(own, normalize=True, length_scales={"a": 1.0, "b": 2.0, "c": 0.0}, block_scales={"a": 3.0, "b": 6.0})
    assert body_share(one) == 3
    with pytest.raises(InputError, match="learnt"):
        body_share(replace(one, block_scales={"a": 3.0, "b": 5.0}))
