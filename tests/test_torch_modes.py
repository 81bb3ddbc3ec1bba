"""Modes of torch that a caller left on change no number: the same inside as outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tangentune
from tangentune import Backbone, Linearization, TangentClassifier, TangentRegressor, baselines, gradient_features, lqf
from tangentune._torch import Held, usual_modes, usual_torch
from tangentune.pictures.pictures import Pictures

X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
Y = np.arange(12) % 3

pytestmark = pytest.mark.filterwarnings("ignore:.*looks the same")


@contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_float64,
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def network() -> nn.Module:
    with torch.random.fork_rng(), usual_modes():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))


def backbone(module: nn.Module) -> Backbone:
    return Backbone(module, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def pictures() -> Pictures:
    with usual_modes():
        return Pictures(torch.from_numpy(X).permute(0, 3, 1, 2), Y, [str(i) for i in range(len(Y))])


def everything(directory: Path) -> dict[str, Any]:
    """Numbers of all that estimators do, from making the backbone to reading a saved model."""
    clf = TangentClassifier(backbone(network()), probes=2, outer_steps=2).fit(X, Y)
    out: dict[str, Any] = {
        "bytes": clf.plan(X, Y)["passes"],
        "fit": clf.loo_predictions_,
        "proba": clf.predict_proba(X),
    }
    out |= {"influence": clf.influence(X[:2]), "suspects": [s.score for s in clf.suspects()]}
    out["gradient"] = clf.weight_gradient()
    out["kernel"] = [new.kernel.numpy() for new in clf.kernel_to_training(X[:2])]
    clf.save_pretrained(directory)
    loaded = TangentClassifier.from_pretrained(directory, backbone=backbone(network()))
    out["loaded"] = loaded.forget("3").add(X[:1] // 2, [1]).predict_proba(X)
    given: dict[str, Any] = {"metric_power": 0.25, "normalize": True, "body_scale": 1.0}  # chosen in the fit above
    soft = TangentClassifier(backbone(network()), likelihood="laplace", damping=0.1, outer_steps=0, **given).fit(X, Y)
    out["laplace"] = soft.predict_proba(X[:3])
    out["std"] = (
        TangentRegressor(backbone(network()), **given).fit(X, Y.astype(float)).predict(X[:3], return_std=True)[1]
    )
    return out


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("saved"))


@modes
def test_estimators_give_the_same_numbers_in_any_mode(
    mode: Callable[[], Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    with mode():
        found = everything(tmp_path / "m")
    same(found, expected)


def methods() -> dict[str, Any]:
    """Numbers of the methods beside."""
    own, given = backbone(network()), pictures()
    fits = {
        "tuned": baselines.fine_tune(own, given, baselines.FineTuneSettings(epochs=2)),
        "probe": baselines.fit_probe(own, given),
        "lqf": lqf.fit_lqf(own, given, lqf.LQFSettings(epochs=2)),
        "gradients": gradient_features.fit_gradient_features(
            own, given, gradient_features.GradientFeatureSettings(cut="4", epochs=2)
        ),
    }
    out = {name: fit.predict_proba(given).numpy() for name, fit in fits.items()}
    lin, x = Linearization(own), own.sample()
    out["kernel"] = tangentune.ntk.tangent_kernel(tangentune.ntk.survey_rows(own, x), x).numpy()
    return out | {"f0": lin.f0(x).numpy(), "forward": lin(x).detach().numpy()}


@modes
def test_methods_give_the_same_numbers_in_any_mode(mode: Callable[[], Any]) -> None:
    outside = methods()
    with mode():
        found = methods()
    same(found, outside)


def test_a_network_and_pictures_made_in_inference_mode_serve_outside() -> None:
    outside = TangentClassifier(backbone(network()), damping=0.1, outer_steps=0).fit(X, Y).predict_proba(X)
    torch.manual_seed(0)
    with torch.inference_mode():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))
        given = torch.from_numpy(X).clone()
        shared = backbone(net)
    clf = TangentClassifier(shared, damping=0.1, outer_steps=0).fit(given, Y)
    np.testing.assert_allclose(clf.predict_proba(given), outside, rtol=1e-5)
    clf = TangentClassifier(backbone(net), damping=0.1, outer_steps=2).fit(given, Y)
    assert np.isfinite(clf.predict_proba(given)).all()


def test_portions_leave_the_callers_modes_alone() -> None:
    clf = TangentClassifier(backbone(network()), damping=0.1, outer_steps=0).fit(X, Y)
    for _ in clf.kernel_to_training(X):
        assert torch.is_grad_enabled()
    with torch.inference_mode():
        for _ in clf.kernel_to_training(X):
            assert torch.is_inference_mode_enabled()


def test_a_held_setting_stays_until_the_last_lets_go() -> None:
    told: list[str] = []

    @contextmanager
    def setting() -> Iterator[None]:
        told.append("on")
        yield
        told.append("off")

    held = Held(setting)
    one, two = held(), held()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert told == ["on"]
    two.__exit__(None, None, None)
    with pytest.raises(KeyError), held():
        raise KeyError
    assert told == ["on", "off", "on", "off"]


BACKENDS: Any = torch.backends


def products() -> list[Any]:
    """How a GPU would multiply, as torch says it, one entry for each of its settings."""
    cudnn, matmul = BACKENDS.cudnn, BACKENDS.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        return [matmul.allow_tf32, cudnn.allow_tf32]
    return [matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]


@pytest.mark.parametrize("asked", ["nothing", "high", "medium", "new"])
def test_no_product_is_rounded_to_tf32_and_the_callers_setting_comes_back(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are there on a machine without a GPU too; this one only has to think that it was built for one."""
    monkeypatch.setattr(BACKENDS.cuda, "is_built", lambda: True)
    usual = products()
    if asked == "new" and len(usual) == 2:
        pytest.skip("this torch has no such name")
    try:
        if asked == "new":
            BACKENDS.fp32_precision = "tf32"
            BACKENDS.cudnn.conv.fp32_precision = "tf32"
            BACKENDS.cudnn.rnn.fp32_precision = "ieee"
        elif asked != "nothing":
            torch.set_float32_matmul_precision(asked)
        before = products()

        @usual_torch
        def inside() -> list[Any]:
            with usual_modes():
                pass
            return products()

        assert inside()[:2] in (["ieee", "none"], ["ieee", "ieee"], [False, False])
        assert products() == before
        with pytest.raises(KeyError), usual_modes():
            raise KeyError
        assert products() == before
    finally:
        if asked == "new":
            BACKENDS.fp32_precision = "none"
            BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cudnn.rnn.fp32_precision = "tf32"
        torch.set_float32_matmul_precision("highest")
        if len(usual) > 2:
            BACKENDS.cuda.matmul.fp32_precision = "none"
    assert products() == usual


# Public, and in the caller's modes: they calculate with Python's numbers, or look into a module, or run inside one.
UNGUARDED = {"layer_factors", "rate_factor", "make_optimiser", "ntk_scale", "leaky_relu6"}


def public_functions() -> Iterator[tuple[str, Any]]:
    for name in tangentune.__all__:
        thing = getattr(tangentune, name)
        names = getattr(thing, "__all__", None) if isinstance(thing, ModuleType) else None
        if isinstance(thing, ModuleType):
            names = names or [n for n, v in vars(thing).items() if getattr(v, "__module__", "") == thing.__name__]
            for inner in names:
                value = getattr(import_module(thing.__name__), inner)
                if not isinstance(value, type) and not inner.startswith("_") and callable(value):
                    yield inner, value
        elif callable(thing) and not isinstance(thing, type):
            yield name, thing


def test_every_public_function_is_guarded_or_named_here() -> None:
    open_to_modes = {name for name, value in public_functions() if not hasattr(value, "__wrapped__")}
    assert open_to_modes == UNGUARDED
    for kind in (TangentClassifier, TangentRegressor):
        own = {name for base in kind.__mro__ if base.__module__.startswith("tangentune") for name in vars(base)}
        methods = [getattr(kind, name) for name in own if not name.startswith(("_", "set_"))]
        assert all(hasattr(method, "__wrapped__") for method in methods if callable(method))


def test_a_guarded_function_keeps_its_name_and_its_home() -> None:
    @usual_torch
    def told(x: int, *, y: int = 2) -> int:
        """What it does."""
        return x + y

    assert (told.__name__, told.__doc__, told(1), told.__globals__) == ("told", "What it does.", 3, globals())
