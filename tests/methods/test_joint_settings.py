"""Settings, source weights and source pictures that joint fine-tuning refuses; the stream of source pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small
import torch
from joint_cases import base, joint, source, target
from torch import nn

from tangentune.errors import InputError
from tangentune.methods.joint import JointSettings, PseudoLabels, SourceLabels, joint_fine_tune
from tangentune.methods.joint.source import SourceDraws, checked_weights, spread_rows
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures

OUT_OF_RANGE: dict[type, dict[str, list[Any]]] = {
    JointSettings: {
        "fine_tune": [None, {}],
        "source_weight": [-0.1, math.nan, math.inf, "1"],
        "batch_ratio": [0, -1.0, math.inf],
        "weighting": ["rank"],
        "batchnorm": ["eval", None],
        "source_task": [None, "labels", SourceLabels],
    },
    SourceLabels: {"start": ["warm", None]},
    PseudoLabels: {
        "temperature": [0.0, -1.0, math.nan],
        "threshold": [1.0, -0.1],
        "crop": [0.0, 1.5],
        "jitter": [1.0, -0.1],
        "cutout": [1.0, math.nan],
    },
}
CASES = [(kind, name, value) for kind, fields in OUT_OF_RANGE.items() for name in fields for value in fields[name]]


@pytest.mark.parametrize("kind, name, value", CASES)
def test_settings_out_of_range_are_refused_by_name(kind: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} is"):
        kind(**{name: value})


def test_choices_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="does not say whose statistics"):
        joint(base(batchnorm="train"))
    with pytest.raises(InputError, match="cross_entropy"):
        joint(base(loss="squared"), source_task=PseudoLabels())


def changed(pictures: Pictures, **fields: Any) -> Pictures:
    return Pictures(**{"pixels": pictures.pixels, "labels": pictures.labels, "ids": pictures.ids, **fields})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"source": source().select([])}, "there is no source picture"),
    "size": ({"source": changed(source(), pixels=source().pixels[..., :7])}, r"\(3, 8, 8\) but source .*\(3, 8, 7\)"),
    "type": ({"source": changed(source(), pixels=source().pixels / 255)}, "are uint8 but source pictures float32"),
    "one class": ({"source": changed(source(), labels=np.zeros(20, int))}, r"two classes at least; these have \[0\]"),
    "one class with weight": ({"source_weights": (np.arange(20) % 4 == 0).astype(float)}, "two classes at least"),
    "no labels": ({"source": changed(source(), labels=None)}, "PseudoLabels needs none"),
    "no target labels": ({"target": changed(target(), labels=None)}, "fine-tuning needs one class label"),
    "negative": ({"source_weights": np.where(np.arange(20) == 4, -1.0, 1.0)}, "source weight 4 is -1.0"),
    "NaN": ({"source_weights": np.where(np.arange(20) == 6, np.nan, 1.0)}, "source weight 6 is nan"),
    "infinite": ({"source_weights": np.where(np.arange(20) == 6, np.inf, 1.0)}, "source weight 6 is inf"),
    "too few": ({"source_weights": np.ones(19)}, r"shape \(19,\); give one number for each of the 20"),
    "square": ({"source_weights": np.ones((20, 1))}, r"shape \(20, 1\)"),
    "text": ({"source_weights": np.array(["1"] * 20)}, "of type <U1"),
    "all zero": ({"source_weights": np.zeros(20)}, "all source weights are 0"),
    "rows": ({"source_head": nn.Linear(6, 5)}, "5 classes from 6 features, but the source has 4 classes"),
    "columns": ({"source_head": nn.Linear(7, 4)}, "4 classes from 7 features, .* 4 classes and the backbone 6"),
    "no layer": ({"source_head": nn.ReLU()}, "source_head is a ReLU"),
    "head without labels": (
        {"source_head": nn.Linear(6, 4), "settings": joint(source_task=PseudoLabels())},
        "source_head needs source labels",
    ),
    "nothing to keep aside": ({"target": target(3), "settings": joint(base(validation_share=0.5))}, "two pictures"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_input_that_does_not_fit_is_refused_in_a_sentence(case: str) -> None:
    fields, words = REFUSED[case]
    given = {"backbone": small.backbone(), "target": target(), "source": source(), **fields}
    with pytest.raises(InputError, match=words) as refused:
        joint_fine_tune(**given)
    assert not str(refused.value).endswith(".")


def test_vectors_have_no_strong_views_but_labels() -> None:
    torch.manual_seed(0)
    backbone = Backbone(nn.Linear(2, 3))
    dots = Pictures(torch.rand(6, 2), np.arange(6) % 2, list("abcdef"))
    with pytest.raises(InputError, match="these are vectors; use SourceLabels"):
        joint_fine_tune(backbone, dots, dots, joint(source_task=PseudoLabels()))
    assert len(joint_fine_tune(backbone, dots, dots, joint(batchnorm="mixed")).source_losses) == 15


def test_weights_keep_their_ratios_at_any_size() -> None:
    weights = np.array([0.0, 1.0, 2.0, 3.0])
    for factor in (1.0, 1e-300, 5e307):
        np.testing.assert_allclose(checked_weights(factor * weights, 4), [0, 0.5, 1, 1.5], rtol=1e-12)
    assert checked_weights(None, 3).tolist() == checked_weights(np.array([True] * 3), 3).tolist() == [1, 1, 1]


def test_a_pass_draws_each_picture_its_share_of_times_and_the_mean_is_exact() -> None:
    n, passes = 40, 4000
    weights = np.random.default_rng(0).exponential(size=n) ** 2
    drawn = SourceDraws(weights, "sampling", seed=0).take(n * passes)[0].reshape(passes, n)
    counts = torch.stack([torch.bincount(one, minlength=n) for one in drawn]).numpy()
    expected = n * weights / weights.sum()
    assert (counts >= np.floor(expected - 1e-9)).all()
    assert (counts <= np.ceil(expected + 1e-9)).all()
    assert np.abs(counts.mean(0) - expected).max() < 5 * 0.5 / passes**0.5  # five standard errors at the most
    assert len({tuple(one) for one in drawn.tolist()}) == passes


def test_both_ways_of_weighting_mean_the_same() -> None:
    weights = checked_weights(np.random.default_rng(1).uniform(0, 2, 25), 25)
    values = torch.from_numpy(np.random.default_rng(2).normal(size=25))
    means = []
    for weighting in ("sampling", "loss"):
        rows, factors = SourceDraws(weights, weighting, seed=0).take(25 * 2000)
        means.append(float((values[rows] * factors).mean()))
    exact = float(values.numpy() @ weights / weights.sum())
    assert means[1] == pytest.approx(exact, abs=1e-12)
    assert means[0] == pytest.approx(exact, abs=5e-3)


def test_spread_rows_hold_every_class_as_alike_as_there_are() -> None:
    positions = np.repeat([2, 0, 1], [50, 3, 20])
    rows = spread_rows(positions, 23, seed=0)
    assert np.bincount(positions[rows]).tolist() == [3, 10, 10]
    assert len(set(rows)) == 23
    assert spread_rows(positions, 1, seed=0).size == 3
    assert spread_rows(positions, 999, seed=0).tolist() == list(range(73))
