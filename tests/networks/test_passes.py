"""Passes through a network that others share: threads, unusual modules, and what a pass leaves behind."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tangentune import Backbone, Linearization, TangentClassifier, baselines
from tangentune.errors import BackboneError
from tangentune.networks.features import features_at
from tangentune.networks.heads import pretrained_head
from tangentune.networks.parameters import used_parameters
from tangentune.networks.passes import no_checkpoints, own_modules
from tangentune.pictures.pictures import Pictures

SIZE = (3, 8, 8)
X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 3
THREADS, ROUNDS = 4, 4


class Tokens(nn.Module):
    """A transformer in small: a class token and a layer scale of its own, which no layer rule covers, and attention."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.scale = nn.Parameter(torch.randn(width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + self.scale * self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.classify(self.norm(tokens[:, 0]))


def backbone(module: nn.Module, features: Any = None) -> Backbone:
    return Backbone(module, input_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3, features=features)


def made(kind: type[nn.Module] | Any, *args: Any) -> Any:
    torch.manual_seed(0)
    return kind(*args).double()


def together(jobs: list[Any]) -> list[Any]:
    """What the jobs return, all begun at the same moment."""
    barrier = Barrier(len(jobs))

    def begin(job: Any) -> Any:
        barrier.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [running.result() for running in [pool.submit(begin, job) for job in jobs]]


@pytest.mark.parametrize("features", [None, "norm"])
def test_predictions_from_four_threads_are_those_of_one(features: str | None) -> None:
    """Of different pictures, so that a thread that gets another's activations or parameters shows."""
    clf = TangentClassifier(backbone(made(Tokens), features), damping=0.1, outer_steps=0).fit(X, Y)
    parts = [X[i::THREADS] for i in range(THREADS)]
    expected = [clf.predict_proba(part) for part in parts]
    for _ in range(ROUNDS):
        found = together([partial(clf.predict_proba, part) for part in parts])
        for own, alone in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, alone, rtol=0, atol=1e-12)
    assert all(isinstance(p, nn.Parameter) for p in (clf.backbone_.module.token, clf.backbone_.module.scale))


@pytest.mark.parametrize("outer_steps", [0, 4])
def test_fits_that_share_a_backbone_are_those_of_one_thread(outer_steps: int) -> None:
    shared = backbone(made(Tokens), "norm")
    labels = [np.roll(Y, i) for i in range(THREADS)]
    fixed = {"damping": 0.1, "metric_power": 0.25, "body_scale": 1.0, "normalize": True, "outer_steps": outer_steps}
    fit = lambda y: TangentClassifier(shared, **fixed).fit(X, y).loo_predictions_
    alone = [fit(y) for y in labels]
    for own, expected in zip(together([partial(fit, y) for y in labels]), alone, strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-10)


def test_checks_features_and_products_with_the_jacobian_share_a_network_among_threads() -> None:
    shared = backbone(made(Tokens), "norm")
    x = torch.from_numpy(X).permute(0, 3, 1, 2).double() / 255
    lin = Linearization(shared)
    tangent = {name: torch.ones_like(p) for name, p in lin.point().items()}
    jobs = [partial(shared.features, x[:5]), partial(shared.check, x), partial(lin.jvp, x[:7], tangent)]
    jobs += [partial(lin.vjp, x[:3], torch.ones(3, 6).double()), partial(pretrained_head, shared, [0, 1])]
    features, _, product, pulled, _ = (job() for job in jobs)
    for _ in range(ROUNDS):
        found = together(jobs)
        torch.testing.assert_close(found[0], features, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[2], product, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[3], pulled, rtol=0, atol=1e-12)


class Aliases(nn.Module):
    """One parameter under two names, in a list, behind a bound method and a partial function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.listed = [self.first, (self.second,), {"weight": self.first.weight}]
        self.bound, self.part = self.second.forward, partial(self.first.forward)
        self.recurrent = nn.LSTM(3, 2, batch_first=True)
        self.normed = parametrizations.weight_norm(nn.Linear(2, 2))
        self.old = torch.nn.utils.spectral_norm(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(self.bound(x)) + self.listed[0](x) @ self.listed[2]["weight"] + self.listed[1][0](x)
        return self.old(self.normed(self.recurrent(x[:, None])[0][:, -1]))


def test_own_modules_calculate_as_the_network_does_and_take_replaced_parameters_in_all_places() -> None:
    module = made(Aliases).eval().requires_grad_(False)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(own_modules(module)(x), module(x))
    moved = {name: p + 0.1 for name, p in module.named_parameters()}
    before = {name: p.clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        found = features_at(module, lambda own, x: own(x), moved, x)
        for name, p in module.named_parameters():
            p.copy_(moved[name])
        assert torch.allclose(found, module(x), atol=1e-12)
        for name, p in module.named_parameters():
            p.copy_(before[name])
    assert not torch.allclose(found, module(x))
    own: Any = own_modules(module)
    assert own.second.weight is own.first.weight is module.first.weight
    own.first.register_forward_pre_hook(lambda *_: None)
    assert not module.first._forward_pre_hooks
    assert own_modules(own) is own


def test_a_compiled_part_is_followed() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)).double()
    part: Any = torch.compile(plain[0], backend="eager")
    compiled = nn.Sequential(part, plain[1])
    x, r = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    expected = Linearization(plain).vjp(x, r)
    for name, pulled in Linearization(Backbone(compiled)).vjp(x, r).items():
        torch.testing.assert_close(pulled, expected[name.replace("_orig_mod.", "")])


def test_a_part_behind_an_object_of_another_kind_is_named() -> None:
    class Box:
        def __init__(self, module: nn.Module) -> None:
            self.module = module

    class Boxed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)
            self.box = Box(self.inner)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.box.module(x))

    net, x = made(Boxed), torch.randn(5, 4).double()
    with pytest.raises(BackboneError, match=r"parameter inner\.weight through an object"):
        Backbone(net).check(x)
    with pytest.raises(BackboneError, match=r"parameter inner\.weight through an object"):
        Linearization(net).vjp(x, torch.ones(5, 3).double())


class Keeps(nn.Module):
    """Keeps its activations on itself, as people do who want to look at them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.kept = nn.Linear(192, 5), []

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x.flatten(1)).tanh()
        self.kept.append(self.last)
        return self.last


def test_a_network_that_keeps_its_activations_holds_no_graph_and_can_be_copied() -> None:
    net = made(Keeps)
    net(torch.zeros(1, *SIZE).double())  # used before it is given
    clf = TangentClassifier(backbone(net), damping=0.1, outer_steps=2).fit(X, Y)
    expected, twin = clf.predict_proba(X), cast(TangentClassifier, clone(clf))
    kept: list[Any] = [
        clf.backbone_.module,
        clf.fitted_.feature_map.tangent.module,
        *clf.fitted_.feature_map.tangent.points,
    ]
    assert all(len(part.kept) == 1 and part.kept[0].grad_fn is None and part.last.grad_fn is None for part in kept)
    np.testing.assert_array_equal(copy.deepcopy(clf).predict_proba(X), expected)
    np.testing.assert_array_equal(twin.fit(X, Y).predict_proba(X), expected)
    assert net.last.grad_fn is not None
    pictures = Pictures(torch.from_numpy(X).permute(0, 3, 1, 2), Y, [str(i) for i in range(12)])
    tuned = baselines.fine_tune(backbone(net), pictures, baselines.FineTuneSettings(epochs=1))
    assert torch.equal(copy.deepcopy(tuned).logits(pictures), tuned.logits(pictures))


class Counts(nn.Module):
    """Holds whole numbers as a parameter, the first of all, as relative position tables do."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.tensor([1, 0]), requires_grad=False)
        self.body = nn.Linear(192, 5)
        self.table = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)).tanh() + self.table[self.places].sum(0)


def test_whole_numbers_among_the_parameters_stay_as_they_are() -> None:
    shared = backbone(made(Counts))
    x = shared.sample()
    assert used_parameters(shared.module, shared.feature_function, x) == ["table", "body.weight", "body.bias"]
    clf = TangentClassifier(shared, damping=0.1, outer_steps=2).fit(X, Y)
    assert "places" not in (clf.task_vector_ or {"places": 0})
    assert np.isfinite(clf.predict_proba(X)).all()
    pictures = Pictures(torch.from_numpy(X).permute(0, 3, 1, 2), Y, [str(i) for i in range(12)])
    for settings in (baselines.FineTuneSettings(epochs=1), baselines.FineTuneSettings(epochs=1, optimiser="sgd")):
        tuned = baselines.fine_tune(shared, pictures, settings)
        assert cast(Any, tuned.backbone.module).places.tolist() == [1, 0]


class Checkpointed(nn.Module):
    """Two blocks whose activations are not kept, by torch's way or by timm's, which imports the function by name."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
        self.second = nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.Tanh())
        self.scale = nn.Parameter(torch.full((5,), 1.5))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.scale * self.second(self.first(x))
        x = checkpoint(self.first, x, use_reentrant=self.reentrant)
        return checkpoint(lambda x: self.scale * self.second(x), x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    plain, given = (backbone(made(Checkpointed, kind)) for kind in (None, reentrant))
    fits = [TangentClassifier(own, damping=0.1, outer_steps=2).fit(X, Y) for own in (plain, given)]
    np.testing.assert_allclose(fits[1].predict_proba(X), fits[0].predict_proba(X), rtol=0, atol=1e-12)
    assert fits[1].model_.body.keys() == fits[0].model_.body.keys()
    x, r = given.sample(), torch.ones(1, 5).double()
    for name, pulled in Linearization(given).vjp(x, r).items():
        torch.testing.assert_close(pulled, Linearization(plain).vjp(x, r)[name])
    pictures = Pictures(torch.from_numpy(X).permute(0, 3, 1, 2), Y, [str(i) for i in range(12)])
    tuned = [baselines.fine_tune(own, pictures, baselines.FineTuneSettings(epochs=1)) for own in (plain, given)]
    torch.testing.assert_close(tuned[1].logits(pictures), tuned[0].logits(pictures))


def test_checkpoints_of_the_caller_are_back_after_a_pass() -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(None)
        return x.tanh()

    def ran() -> int:
        calls.clear()
        checkpoint(counted, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
        return len(calls)

    assert ran() == 2
    with no_checkpoints():
        assert ran() == 1
    assert ran() == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_are_brought_to_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.eval()[1].running_mean.normal_()
    exact = TangentClassifier(backbone(net), damping=0.1, outer_steps=0).fit(X, Y)
    narrow = copy.deepcopy(net).to(dtype)
    mixed = copy.deepcopy(net)
    mixed[0].to(dtype)
    for given in (narrow, mixed):
        own = backbone(given)
        assert own.dtype == torch.float32
        assert {str(t.dtype) for t in own.module.state_dict().values()} == {"torch.float32", "torch.int64"}
        clf = TangentClassifier(own, damping=0.1, outer_steps=0).fit(X, Y)
        np.testing.assert_allclose(clf.predict_proba(X), exact.predict_proba(X), atol=0.02)
        assert given[0].weight.dtype == dtype
    lin = Linearization(narrow)
    assert lin.f0(own.sample()).dtype == torch.float32
