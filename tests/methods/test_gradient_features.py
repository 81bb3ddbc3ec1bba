"""Gradient features against the explicit Taylor expansion and hand-written training on explicit features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pytest
import small
import torch
from reference import closeness, explicit_jacobian
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from tangentune import Backbone
from tangentune.errors import InputError
from tangentune.jacobian.task_vector import TaskVector
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.gradient_features import (
    GradientFeatures,
    GradientFeatureSettings,
    fit_gradient_features,
    ntk_scale,
)
from tangentune.networks.heads import probe_head, random_head
from tangentune.pictures.load import load_pictures
from tangentune.pictures.pictures import Pictures

Variant = Literal["full", "gradient", "activation"]
VARIANTS: tuple[Variant, ...] = ("full", "gradient", "activation")
SETTINGS = GradientFeatureSettings(cut="5", learning_rate=0.02, head_learning_rate=0.02, epochs=3, batch_size=8)


def some_pictures(n: int = 20) -> Pictures:
    x, labels = small.pictures(n)
    return load_pictures(x, labels, contract=small.backbone().contract)


def fitted(**changes: Any) -> GradientFeatures:
    return fit_gradient_features(small.backbone(), some_pictures(), dataclasses.replace(SETTINGS, **changes))


def network_inputs(pictures: Pictures) -> Tensor:
    return small.normalised(pictures.pixels.numpy())


def explicit_outputs(model: GradientFeatures, pictures: Pictures) -> Tensor:
    """`w1^T f + b + om_bar^T J w2`, term by term, J by one backward pass an entry."""
    module, x = model.backbone.module, network_inputs(pictures)
    jacobian = explicit_jacobian(module, x)
    w2 = {name: t for name, t in model.tangent.items() if not name.startswith("head.")}
    second = torch.zeros(len(x), len(model.classes), dtype=torch.float64)
    for name, t in w2.items():
        second += torch.tensordot(jacobian[name], t, dims=t.dim()) @ model.frozen_head.weight.T
    return second if model.head is None else model.head(module(x)).detach() + second


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_are_the_two_terms(variant: Variant) -> None:
    model = fitted(variant=variant)
    pictures = some_pictures(6)
    assert closeness(model.logits(pictures), explicit_outputs(model, pictures)) < 1e-10
    mirrored = dataclasses.replace(pictures, pixels=pictures.pixels.flip(-1))
    mean = (explicit_outputs(model, pictures) + explicit_outputs(model, mirrored)) / 2
    assert closeness(model.logits(pictures, flip=True), mean) < 1e-10
    torch.testing.assert_close(model.predict_proba(pictures), model.logits(pictures).softmax(1))
    assert model.predict(pictures).tolist() == model.classes[model.logits(pictures).argmax(1)].tolist()


def test_full_model_is_the_taylor_expansion_in_theta2_and_head() -> None:
    model = fitted(epochs=6)
    assert all(t.norm() > 0 for t in model.tangent.values())
    module, x = model.backbone.module, network_inputs(some_pictures(7))
    theta2 = {name: module.get_parameter(name).detach() for name in model.tangent if not name.startswith("head.")}
    om = {f"head.{name}": p.detach() for name, p in model.frozen_head.named_parameters()}

    def network(weights: dict[str, Tensor]) -> Tensor:
        phi = functional_call(module, {name: weights[name] for name in theta2}, (x,))
        return phi @ weights["head.weight"].T + weights["head.bias"]

    value, slope = jvp(network, (theta2 | om,), (dict(model.tangent),))[:2]
    assert closeness(model.logits(some_pictures(7)), value + slope) < 1e-10


def test_outputs_are_linear_in_what_is_learnt() -> None:
    model, pictures = fitted(), some_pictures(5)
    zero, a = 0.0 * model.tangent, model.tangent
    b = TaskVector({name: torch.randn_like(t) for name, t in a.items()})

    def change(tangent: TaskVector) -> Tensor:
        moved = dataclasses.replace(model, tangent=tangent)
        return moved.logits(pictures) - dataclasses.replace(model, tangent=zero).logits(pictures)

    assert closeness(change(2.0 * a - 3.0 * b), 2 * change(a) - 3 * change(b)) < 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_step_zero_it_is_the_activation_model_exactly(variant: Variant) -> None:
    pictures, backbone = some_pictures(), small.backbone()
    model = fitted(
        variant=variant, learning_rate=1e-300, head_learning_rate=1e-300, epochs=1
    )  # no step is large enough to be seen
    head = probe_head(mean_features(backbone, pictures, 64, True), torch.arange(20) % 4)
    torch.testing.assert_close(model.frozen_head.weight, head.weight.detach(), rtol=1e-10, atol=1e-12)
    start = model.frozen_head(mean_features(backbone, pictures, 64, False))
    expected = torch.zeros_like(start) if variant == "gradient" else start
    assert torch.allclose(model.logits(pictures), expected, rtol=0, atol=1e-200 if variant == "gradient" else 0)
    if variant == "gradient":  # the first outputs are all 0
        assert model.losses[0] == pytest.approx(math.log(4))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_training_of_explicit_features_in_the_ntk_parametrisation(
    variant: Variant, optimiser: str, loss: str
) -> None:
    """`W = s What` trained by an optimiser that knows nothing of rates by part, on autograd's own gradients."""
    pictures, decay = some_pictures(), 0.3
    changes: Any = {"variant": variant, "optimiser": optimiser, "loss": loss}
    model = fitted(
        **changes, batch_size=20, epochs=4, warmup=0.25, flip=False, ntk_scaling=True, learning_rate=0.02,
        head_learning_rate=0.04, weight_decay=decay,
    )  # fmt: skip
    module, om = model.backbone.module, model.frozen_head
    x, labels = network_inputs(pictures), torch.arange(20) % 4
    phi, jacobian = module(x).detach(), explicit_jacobian(module, x)
    hats = {
        name: torch.zeros_like(module.get_parameter(name)).requires_grad_()
        for name in model.tangent
        if "head" not in name
    }
    moves = [torch.zeros_like(p).requires_grad_() for p in (om.weight, om.bias)]

    def outputs() -> Tensor:
        out = torch.zeros(20, 4, dtype=torch.float64)
        if variant != "gradient":
            out = out + phi @ (om.weight + moves[0]).T + om.bias + moves[1]
        for name, hat in hats.items():
            out = out + torch.tensordot(jacobian[name], ntk_scale(hat) ** 0.5 * hat, dims=hat.dim()) @ om.weight.T
        return out

    kind = {"sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9), "adamw": torch.optim.AdamW}[optimiser]
    learnt = [] if variant == "gradient" else moves
    groups: list[dict[str, Any]] = [{"params": [v], "weight_decay": decay, "times": 1} for v in hats.values()]
    groups += [{"params": [v], "weight_decay": decay * (v.ndim > 1), "times": 2} for v in learnt]
    trainer, losses = kind(groups), []
    for epoch, rate in enumerate((0.02, 0.02, 0.015, 0.005)):
        for group in trainer.param_groups:
            group["lr"] = rate * group["times"]
        onehot = F.one_hot(labels, 4).double()
        out = outputs()
        value = F.cross_entropy(out, labels) if loss == "cross_entropy" else 0.5 * (out - onehot).square().sum() / 20
        losses.append(value.item())
        trainer.zero_grad()
        value.backward()
        trainer.step()
        assert model.losses[epoch] == pytest.approx(losses[-1], rel=1e-7)
    assert closeness(model.logits(pictures), outputs().detach()) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_kept_activations_change_nothing(variant: Variant) -> None:
    kept, made = fitted(variant=variant), fitted(variant=variant, cache=False)
    assert kept.cut == ("" if variant == "activation" else "5")
    assert (made.cut, kept.problem, made.problem) == ("", "", "")
    assert kept.losses == pytest.approx(made.losses, rel=1e-10)
    for name, value in kept.tangent.items():
        torch.testing.assert_close(value, made.tangent[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("cache", [True, False])
def test_below_the_cut_every_picture_runs_once(cache: bool) -> None:
    backbone, seen = small.backbone(), [0]
    lowest = backbone.module.get_submodule("0")

    def count(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[0] += len(given[0])

    handle = lowest.register_forward_pre_hook(count)
    fit_gradient_features(backbone, some_pictures(), dataclasses.replace(SETTINGS, epochs=20, cache=cache))
    handle.remove()
    assert (seen[0] < 20 * 2 + 30) == cache
    assert cache or seen[0] >= 20 * 20


class Around(nn.Module):
    """Nothing can be kept: the input reaches the end by a way around the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.top = nn.Linear(4, 5), nn.Linear(5, 5)
        self.side = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.top(torch.tanh(self.low(x))) + self.side(x))


def test_where_the_network_cannot_be_cut_it_says_so_and_gives_the_same() -> None:
    torch.manual_seed(0)
    backbone = Backbone(Around().double())
    vectors = Pictures(torch.randn(12, 4, dtype=torch.float64), np.arange(12) % 3, [str(i) for i in range(12)])
    settings = GradientFeatureSettings(cut="top", epochs=2)
    model = fit_gradient_features(backbone, vectors, settings)
    assert model.problem.startswith("every step ran the whole network: ")
    assert model.cut == ""
    plain = fit_gradient_features(backbone, vectors, dataclasses.replace(settings, cache=False))
    assert all(torch.equal(t, plain.tangent[name]) for name, t in model.tangent.items())


def test_the_frozen_head_shares_no_memory_and_stays() -> None:
    backbone, head = small.backbone(), random_head(6, 4).double()
    state = {name: value.clone() for name, value in (backbone.module.state_dict() | head.state_dict()).items()}
    model = fit_gradient_features(backbone, some_pictures(), SETTINGS, head=head)
    moved, predicting = model.head, model.linearization.function.network.head
    assert moved is not None
    assert predicting is not None
    owners: list[Iterable[Tensor]] = [part.parameters() for part in (head, model.frozen_head, moved, predicting)]
    owners += [model.linearization.tangent.parameters(), model.tangent.values()]
    places = [{p.untyped_storage().data_ptr() for p in owner} for owner in owners]
    assert all(a.isdisjoint(b) for i, a in enumerate(places) for b in places[:i])
    for name, value in (backbone.module.state_dict() | head.state_dict()).items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(model.frozen_head.weight, head.weight)
    assert not torch.equal(moved.weight, head.weight)
    assert moved.weight.sub(head.weight).sub(model.tangent["head.weight"]).abs().max() < 1e-15


def test_learns_what_no_linear_model_of_the_frozen_features_can() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(8, 1)
    equal = (corners[:, 0] == corners[:, 1]).numpy()
    pictures = Pictures(corners, equal, [str(i) for i in range(32)])
    torch.manual_seed(2)
    backbone = Backbone(nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2), nn.Tanh()))
    right = {}
    for variant in VARIANTS:
        settings = GradientFeatureSettings(
            cut="0", variant=variant, learning_rate=0.05, head_learning_rate=0.05, epochs=60
        )
        model = fit_gradient_features(backbone, pictures, settings, head=random_head(2, 2))
        right[variant] = (model.predict(pictures) == equal).all()
    assert right == {"full": True, "gradient": True, "activation": False}


def test_a_seed_fixes_everything_and_global_randomness_stays() -> None:
    backbone, pictures, state = small.backbone(), some_pictures(), torch.random.get_rng_state()
    first, again, other = (
        fit_gradient_features(backbone, pictures, dataclasses.replace(SETTINGS, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, again.tangent[name]) for name, t in first.tangent.items())
    assert first.losses != other.losses


def test_what_does_not_fit_is_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"cut": ""}, {"variant": "both"}, {"learning_rate": 0.0}, {"head_learning_rate": math.nan}, {"epochs": 0},
        {"batch_size": 1.5}, {"optimiser": "adam"}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"ntk_scaling": 1},
        {"loss": "hinge"}, {"warmup": 1.0}, {"schedule": "step"}, {"flip": "yes"}, {"cache": None}, {"seed": -1},
    ]  # fmt: skip
    for fields in wrong:
        with pytest.raises(InputError, match=next(iter(fields))):
            GradientFeatureSettings(**fields)
    backbone, pictures = small.backbone(), some_pictures()
    for head in (random_head(6, 3), random_head(5, 4), nn.Linear(6, 4, bias=False)):
        with pytest.raises(InputError, match="from 6 features to 4 classes"):
            fit_gradient_features(backbone, pictures, SETTINGS, head=head)
    with pytest.raises(InputError, match="two classes"):
        fit_gradient_features(backbone, pictures.select([0, 4]), SETTINGS)
    with pytest.raises(InputError, match="names no block"):
        fitted(cut="2")
    with pytest.raises(InputError, match="diverged in epoch"):
        fitted(learning_rate=1e200, loss="squared", optimiser="sgd", epochs=9)
