"""The products with the Jacobian against explicit Jacobians, and the module whose only state is the tangent."""

from __future__ import annotations

import copy
import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, Seq, images, seeded, sequences, vectors
from reference import closeness, explicit_jacobian
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

from tangentune import Backbone
from tangentune.errors import BackboneError, InputError
from tangentune.jacobian import survey
from tangentune.jacobian.kfac import kfac
from tangentune.jacobian.linearization import Linearization
from tangentune.kernels.output_gram import logit_gram

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


class Recurrent(nn.Module):
    """An LSTM: torch has no forward mode for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(6, 4), nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(torch.tanh(self.first(x)))[0][:, -1])


class Bag(nn.Module):
    """A mean of embeddings: no forward mode either."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(9, 4, mode="mean"), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.bag(x)))


class Fused(nn.Module):
    """Fused attention, called as timm does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(F.gelu(mixed + x)).mean(1)


class Awkward(nn.Module):
    """Writes into slices and views, reads shapes and transposes, and uses every in-place form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(6, 6), nn.Linear(6, 3), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = torch.zeros(h.shape[0], h.shape[1], dtype=h.dtype)
        y[:, :3] = h[:, 3:] * self.scale[:3]
        y[:, 3:] += h[:, :3].T.clone().T
        y *= self.scale
        y.clamp_(min=-2.0).add_(h)
        a, b = torch.relu_(y).split(3, dim=1)
        return self.last(torch.cat([a.sin(), b], 1))


class Named(nn.Module):
    """Takes keywords and returns an object, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        h = (self.table(ids) * mask[..., None]).sum(1)
        return {"hidden": h, "logits": self.last(torch.tanh(h))}


MORE = (
    Case("lstm", Recurrent, sequences()),
    Case("embedding_bag", Bag, lambda n, gen: torch.randint(9, (n, 5), generator=gen)),
    Case("fused_attention", Fused, sequences(5, 8)),
    Case("awkward", Awkward, vectors()),
    Case("relu6", lambda: Seq(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU6(True), nn.Conv2d(5, 3, 3)), images()),
    Case("leaky", lambda: Seq(nn.Linear(6, 5), nn.LeakyReLU(0.1, inplace=True), nn.Linear(5, 3)), vectors()),
)  # fmt: skip
CONVNET = next(case for case in CASES if case.name == "batchnorm")


def tangent_like(lin: Linearization, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in lin.zeros().items()}


def product(jacobian: dict[str, Tensor], v: dict[str, Tensor]) -> Tensor:
    return torch.stack([torch.tensordot(jacobian[name], t, dims=t.dim()) for name, t in v.items()]).sum(0)


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((t * b[name]).sum()) for name, t in a.items())


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_products_equal_the_explicit_jacobian(case: Case) -> None:
    network, x = case.network(), case.batch(3)
    lin = Linearization(network)
    v, r = tangent_like(lin), torch.randn(lin.f0(x).shape, generator=torch.Generator().manual_seed(2)).double()
    jacobian = explicit_jacobian(network, x)
    jv = product(jacobian, v)
    assert closeness(lin.jvp(x, v), jv) < 1e-10
    jtr = {name: torch.tensordot(r, jacobian[name], dims=r.dim()) for name in lin.names}
    for name, value in lin.vjp(x, r).items():
        assert closeness(value, jtr[name]) < 1e-10 or jtr[name].norm() < 1e-12, name
    assert closeness(lin(x, v), network(x) + jv) < 1e-10
    assert abs(inner(lin.normal(x, v), v) - float(jv.square().sum())) < 1e-9 * float(jv.square().sum())


@pytest.mark.parametrize("case", [CONVNET, *MORE[2:4]], ids=lambda case: case.name)
def test_linearity_and_finite_differences(case: Case) -> None:
    network, x = case.network(), case.batch(3)
    lin = Linearization(network)
    u, v = tangent_like(lin, 0), tangent_like(lin, 1)
    both = {name: 2.0 * u[name] - 3.0 * v[name] for name in u}
    combined = lin(x, both) - lin.f0(x)
    assert closeness(combined, 2.0 * lin.jvp(x, u) - 3.0 * lin.jvp(x, v)) < 1e-10
    step, moved = 1e-6, [copy.deepcopy(network), copy.deepcopy(network)]
    for sign, net in zip((1, -1), moved, strict=True):
        for name, p in net.named_parameters():
            p.add_(u[name], alpha=sign * step)
    assert closeness((moved[0](x) - moved[1](x)) / (2 * step), lin.jvp(x, u)) < 1e-6


def test_step_is_the_gradient_of_the_loss() -> None:
    network, x = CONVNET.network(), CONVNET.batch(4)
    lin, targets = Linearization(network), torch.randn(4, 100).double()
    lin.set_tangent(tangent_like(lin))
    (0.5 * (lin(x) - targets).square().sum()).backward()
    f0, jv, grads = lin.step(x, lin.task_vector(), lambda f0, jv: f0 + jv - targets)
    assert f0.equal(lin.f0(x))
    assert closeness(jv, lin.jvp(x, lin.task_vector())) < 1e-12
    for name, p in lin.tangent.named_parameters():
        assert p.grad is not None
        assert closeness(p.grad, grads[name]) < 1e-12
    jacobian = explicit_jacobian(network, x)
    expected = torch.tensordot(f0 + jv - targets, jacobian["0.weight"], dims=2)
    assert closeness(grads["0.weight"], expected) < 1e-10


def test_module_trains_and_saves_nothing_but_the_tangent(tmp_path: Path) -> None:
    network = CONVNET.network()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    lin, x = Linearization(network), CONVNET.batch(4)
    assert {name for name, _ in lin.named_parameters()} == {f"tangent.{name}" for name, _ in network.named_parameters()}
    assert set(lin.state_dict()) == {name for name, _ in lin.named_parameters()}
    assert not list(lin.buffers())
    assert lin(x).equal(network(x))
    optimiser = torch.optim.SGD(lin.parameters(), lr=1e-5)
    losses = []
    for _ in range(20):
        loss = lin.train()(x).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert all(t.equal(before[name]) for name, t in network.state_dict().items())
    other = Linearization(network)
    torch.save(lin.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other(x).equal(lin(x))
    assert os.path.getsize(tmp_path / "state.pt") < 2 * sum(p.numel() * 8 for p in lin.parameters()) + 8192


def test_hooks_fire_and_copies_are_apart() -> None:
    lin, x, seen = Linearization(CONVNET.network()), CONVNET.batch(2), []
    lin.register_forward_hook(lambda *_: seen.append(1))
    twin = copy.deepcopy(lin)
    twin.set_tangent(tangent_like(twin))
    assert lin(x).equal(lin.f0(x))
    assert not twin(x).equal(lin(x))
    assert len(seen) >= 2


def test_to_moves_the_network_but_not_the_shared_backbone() -> None:
    backbone = Backbone(CONVNET.network())
    lin = Linearization(backbone)
    lin.float()
    assert lin(CONVNET.batch(2).float()).dtype == torch.float32
    assert backbone.dtype == torch.float64
    assert closeness(lin.f0(CONVNET.batch(2).float()).double(), backbone.features(CONVNET.batch(2))) < 1e-5


def test_backbone_with_head_gives_logits() -> None:
    backbone, head = Backbone(CONVNET.network()), seeded(nn.Linear(100, 3))
    assert isinstance(head, nn.Linear)
    lin, x = Linearization(backbone, head=head), CONVNET.batch(3)
    assert lin.names[-2:] == ("head.weight", "head.bias")
    whole = nn.Sequential(CONVNET.network(), head)
    assert closeness(lin.f0(x), whole(x)) < 1e-12
    jacobian = explicit_jacobian(whole, x)
    v = tangent_like(lin)
    renamed = {f"1.{n[5:]}" if n.startswith("head.") else f"0.{n}": t for n, t in v.items()}
    expected = product(jacobian, renamed)
    assert closeness(lin.jvp(x, v), expected) < 1e-10


def test_subset_moves_only_what_it_names() -> None:
    network, x = CONVNET.network(), CONVNET.batch(3)
    lin, whole = Linearization(network, params="1.*"), Linearization(network)
    assert lin.names == ("1.weight", "1.bias")
    assert Linearization(network, params=["1.bias", "1.weight"]).names == lin.names
    v = tangent_like(lin)
    assert closeness(lin.jvp(x, v), whole.jvp(x, whole.zeros() | v)) < 1e-12


def test_dict_inputs_and_output_objects() -> None:
    network = seeded(Named())
    x = {"ids": torch.tensor([[1, 2, 3], [4, 0, 8]]), "mask": torch.tensor([[1.0, 1, 0], [1, 1, 1]]).double()}
    lin = Linearization(network)
    v = tangent_like(lin)
    truth = torch.func.jvp(lambda p: torch.func.functional_call(network, p, (), x)["logits"], (lin.point(),), (v,))[1]
    assert closeness(lin.jvp(x, v), truth) < 1e-12
    lin.set_tangent(v)
    lin(x).sum().backward()
    assert closeness(lin(x).detach(), lin.f0(x) + truth) < 1e-12


def test_attention_choice_comes_back_after() -> None:
    lin, x = Linearization(seeded(Fused())), sequences(5, 8)(2, torch.Generator().manual_seed(0))

    def allowed() -> tuple[bool, bool, bool]:
        return (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        )

    before = allowed()
    lin.normal(x, lin.zeros())
    assert allowed() == before
    with torch.nn.attention.sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        inside = allowed()
        lin.jvp(x, tangent_like(lin))
        assert allowed() == inside


def test_zero_head_is_refused_with_the_reason() -> None:
    zero = nn.Linear(100, 3).double()
    nn.init.zeros_(zero.weight)
    with pytest.raises(InputError, match="head.*zero"):
        Linearization(Backbone(CONVNET.network()), head=zero)
    last = nn.Linear(4, 2)
    nn.init.zeros_(last.weight)
    with pytest.raises(InputError, match="zero"):
        Linearization(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), last))


def test_checkpoints_become_tangents_that_add() -> None:
    network, x = CONVNET.network(), CONVNET.batch(3)
    lin, tuned = Linearization(network), seeded(CONVNET.make(), seed=5)
    task = lin.from_finetuned(tuned)
    assert closeness(task["0.weight"], tuned.state_dict()["0.weight"] - network.state_dict()["0.weight"]) < 1e-15
    other = lin.from_finetuned(seeded(CONVNET.make(), seed=6).state_dict())
    both = lin(x, task + 0.5 * other) - lin.f0(x)
    assert closeness(both, lin.jvp(x, task) + 0.5 * lin.jvp(x, other)) < 1e-10
    assert closeness(lin.jvp(x, task - task), torch.zeros(3, 100).double()) == 0
    with pytest.raises(InputError, match=r"1\.bias"):
        lin.from_finetuned({name: t for name, t in tuned.state_dict().items() if name != "1.bias"})


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Linearization(CONVNET.network(), params="9.*"), InputError, "matches none"),
        (lambda: Linearization(CONVNET.network(), params=["nowhere"]), InputError, "nowhere"),
        (lambda: Linearization(CONVNET.network(), head=nn.Linear(5, 2)), InputError, "Backbone"),
        (lambda: Linearization(CONVNET.network()).jvp(CONVNET.batch(2), {}), InputError, "the tangent has no"),
        (lambda: Linearization(nn.Sequential(nn.Linear(2, 2), Odd())).f0(torch.ones(1, 2)), BackboneError, "str"),
    ],
)
def test_mistakes_get_one_sentence(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


class Odd(nn.Module):
    def forward(self, _x: Tensor) -> str:
        return "no tensor"


def test_a_step_runs_the_network_once() -> None:
    """One dual forward: the primal convolution once, its tangent twice; and no tape on the tangent."""

    class Count(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += func is F.conv2d
            return func(*args, **(kwargs or {}))

    lin, x = Linearization(CONVNET.network()), CONVNET.batch(2)
    with Count() as count:
        _, jv, _ = lin.step(x, lin.zeros(), lambda f0, jv: f0 + jv)
    assert count.calls <= 2  # inputs carry no tangent: the primal, and the tangent of the weight
    assert not jv.requires_grad


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224"])
def test_timm_vision_transformer(name: str) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, pretrained=False, num_classes=4, img_size=32, depth=2).double()
    _check_large(network, torch.randn(2, 3, 32, 32).double())


def test_hugging_face_vision_transformer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).double()
    _check_large(network, {"pixel_values": torch.randn(2, 3, 16, 16).double()})


def _check_large(network: nn.Module, x: Tensor | dict[str, Tensor]) -> None:
    lin = Linearization(network)
    v, r = tangent_like(lin), torch.randn(lin.f0(x).shape).double()
    jv = lin.jvp(x, v)
    assert abs(float((jv * r).sum()) - inner(lin.vjp(x, r), v)) < 1e-9 * float(jv.norm() * r.norm())
    step, tuned = 1e-6, [Linearization(network), Linearization(network)]
    for sign, twin in zip((1, -1), tuned, strict=True):
        for name, p in twin.point().items():  # no copies
            p.add_(v[name], alpha=sign * step)
    assert closeness((tuned[0].f0(x) - tuned[1].f0(x)) / (2 * step), jv) < 1e-6


@pytest.mark.parametrize("solver", ["step", "module", "kfac", "ekfac", "gram"])
def test_nothing_outlives_a_pass(solver: str) -> None:
    """A hook that holds what the tape holds would keep every batch for ever."""
    lin, x = Linearization(CONVNET.network()), CONVNET.batch(4)
    alive = weakref.ref(x)
    if solver == "step":
        lin.step(x, lin.zeros(), lambda f0, jv: f0 + jv)
    elif solver == "module":
        lin(x).sum().backward()
    elif solver == "gram":
        logit_gram(lin, [x])
    else:
        kfac(lin, [x], kind=solver)  # pyright: ignore[reportArgumentType]
    del x
    gc.collect()
    assert alive() is None


def test_rows_are_proven_once_for_inputs_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs, find = [], survey.find_ways
    monkeypatch.setattr(survey, "find_ways", lambda *args: proofs.append(find(*args)) or proofs[-1])
    lin, x = Linearization(nn.Linear(3, 2)), torch.randn(4, 3)
    first, again = survey.survey_linearization(lin, x), survey.survey_linearization(lin, x + 1)
    assert (first.ways, first.held, len(proofs)) == (again.ways, again.held, 1)
    survey.survey_linearization(lin, x[:1])  # one picture proves less than three: it cannot show that pictures mix
    survey.survey_linearization(lin.double(), x.double())
    assert len(proofs) == 3
