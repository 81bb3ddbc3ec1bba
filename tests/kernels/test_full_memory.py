"""A device whose memory is full in the middle of a batch: halves of it give the same, and it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from small import FIXED, MEAN, STD, network, pictures
from torch import Tensor, nn

from tangentune import Backbone, TangentClassifier
from tangentune.errors import BudgetError

X, Y = pictures(24)
NEW = pictures(10, seed=5)[0]


class Card:
    """Memory with room for so many views in a network at once."""

    room, refused = 6, 0


class Crowded(nn.Sequential):
    """Layers on the card, copies of them too."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) > Card.room:
            Card.refused += 1
            message = "CUDA out of memory. Tried to allocate 2.00 GiB."
            raise torch.OutOfMemoryError(message)
        return super().forward(input)


def classifier(module: nn.Module, **options: Any) -> TangentClassifier:
    backbone = Backbone(module, input_size=(3, 8, 8), mean=MEAN, std=STD)
    return TangentClassifier(backbone, **(FIXED | {"metric_power": 0.25, "normalize": True} | options))


@pytest.mark.parametrize("options", [{}, {"augment": "flip", "probes": 2}, {"augment": "loo", "outer_steps": 0}])
def test_a_fit_goes_on_with_smaller_batches(options: dict[str, Any]) -> None:
    plain = classifier(network(), **options).fit(X, Y)
    tight = classifier(Crowded(*network().children()), batch_size=16, **options)
    Card.room, Card.refused = 6, 0
    with pytest.warns(RuntimeWarning) as told:
        tight.fit(X, Y)
    full = "the memory of cpu is full with 8 pictures in the network at once; it goes on with 4 at a time"
    assert full in {str(one.message) for one in told}
    refused = Card.refused
    assert 0 < refused < 8  # of several networks: the one given, and copies of it; not again with every batch
    assert_allclose(tight.decision_function(NEW), plain.decision_function(NEW), rtol=0, atol=1e-10)
    assert_allclose(tight.kernel_, plain.kernel_, rtol=0, atol=1e-10)
    assert Card.refused == refused


def test_a_prediction_finds_it_out_as_well() -> None:
    Card.room = 100
    clf = classifier(Crowded(*network().children())).fit(X, Y)
    before = clf.decision_function(NEW)
    Card.room = 1
    with pytest.warns(RuntimeWarning) as told:
        after = clf.decision_function(NEW)
    assert [str(one.message).split("full with ")[1].split()[0] for one in told] == ["10", "5", "3", "2"]
    assert_allclose(after, before, rtol=0, atol=1e-10)
    Card.room = 0
    with pytest.raises(BudgetError, match="one picture in the network has no room in the memory of cpu; lower the inp"):
        clf.decision_function(NEW)
