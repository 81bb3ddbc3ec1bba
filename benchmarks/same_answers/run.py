"""Fit, predict, edit and explain, and keep the numbers: the same script runs on a commit before and on one after.

    python -m benchmarks.same_answers.run --out after.json
    PYTHONPATH=OTHER_CHECKOUT/src python -m benchmarks.same_answers.run --out before.json
    python -m benchmarks.same_answers.page before.json after.json

It touches public names only, so that it runs on either side of a rebuilding. One thread: sums keep their order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tangentune
from benchmarks import datasets, record
from benchmarks.study import STILL
from tangentune import (
    Backbone,
    Linearization,
    Pictures,
    TangentClassifier,
    TangentRegressor,
    kfac,
    leaky,
    load_backbone,
)

Numbers = dict[str, Any]
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and running statistics that no layer treats as a special case; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        scale = max(tensor[0].numel() if tensor.dim() > 1 else 4, 1) ** -0.5
        tensor.data.copy_(1 + 0.2 * noise.abs() if tensor.dim() == 1 else noise * scale)
    return module.eval()


def plain() -> nn.Module:
    """Plain and strided convolutions, norms, a depthwise layer, a linear one."""
    start = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    middle = [nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.GELU(), nn.Conv2d(6, 8, 1), nn.GroupNorm(4, 8), nn.Tanh()]
    return nn.Sequential(*start, *middle, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 7))


def wide() -> nn.Module:
    """Wide kernels and batch norm only: torch prefers channels-last memory here."""
    body = [nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3, 2), nn.BatchNorm2d(10)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Tokens(nn.Module):
    """A small transformer over patches, with a class token: attention, layer norm, a parameter without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the class token."""
        patches = self.patch(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))[:, 0]


NETWORKS: dict[str, Callable[[], nn.Module]] = {"plain": plain, "wide": wide, "tokens": Tokens}


def backbone(network: str, dtype: torch.dtype) -> Backbone:
    """One of the networks with its contract."""
    module = seeded(NETWORKS[network]()).to(dtype)
    return Backbone(module, input_size=(3, 8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def pictures(n: int, classes: int = 4, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(n, 3, 8, 8) noise with a bright corner for each class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.integers(0, 160, (n, 3, 8, 8))
    for picture, label in zip(x, labels, strict=True):
        row, column = 4 * (label // 2 % 2), 4 * (label % 2)
        picture[label % 3, row : row + 4, column : column + 4] += 70
    return x.astype(np.uint8), labels


def named(x: NDArray[np.uint8], labels: NDArray[Any] | None, prefix: str = "p") -> Pictures:
    """As `Pictures`."""
    return Pictures(torch.from_numpy(x), labels, [f"{prefix}{i}" for i in range(len(x))])


(X, Y), NEW = pictures(36), pictures(5, seed=5)[0]
WEIGHTS = np.where(np.arange(36) == 5, 0.0, 0.5 + np.arange(36) % 3)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "flips, balanced": {"augment": "flip", "class_weight": "balanced", "probes": 2},
    "no statistics": {"metric_power": 0, "probe_space": "isotropic", "body_scale": 0.3, "normalize": False},
    "dirichlet": {"likelihood": "dirichlet"},
    "laplace": {"likelihood": "laplace"},
    "outer steps": {"outer_steps": 8, "augment": "flip"},
    "outer steps by loo": {"outer_steps": "loo"},
}


def fitted_numbers(model: Any) -> Numbers:
    """What a fit leaves."""
    names = ("damping_", "relative_damping_", "body_scale_", "metric_power_", "loo_score_", "temperature_",
             "loo_predictions_", "loo_proba_", "dual_coef_", "intercept_", "probes_", "noise_", "kernel_")  # fmt: skip
    found = {name: getattr(model, name) for name in names if getattr(model, name, None) is not None}
    shares = {f"share of {name}": value for name, value in model.block_shares_.items()}
    return found | shares | {"tried": [entry["loo_error"] for entry in model.selection_]}


def classifier(network: str, dtype: torch.dtype, options: dict[str, Any]) -> Numbers:
    """A fit with weights, and its answers."""
    model = TangentClassifier(backbone(network, dtype), **(STILL | options)).fit(X, Y, WEIGHTS)
    return fitted_numbers(model) | {"scores": model.decision_function(NEW), "proba": model.predict_proba(NEW)}


def asked_and_edited(network: str, dtype: torch.dtype) -> Numbers:
    """Explanations, then every edit and its undoing."""
    model = TangentClassifier(backbone(network, dtype), augment="flip", outer_steps=0).fit(X, Y, WEIGHTS)
    out: Numbers = {
        "influence": model.influence(NEW),
        "contributions": model.contributions(NEW),
        "left out": model.leave_out(np.arange(36) // 5),
        "folds": model.leave_out(4),
        "informativeness": model.informativeness(),
        "weight gradient": model.weight_gradient(),
        "unlike": model.ood_score(NEW),
        "suspects": [int(suspect.id) for suspect in model.suspects(6)],
    }
    edits: dict[str, Callable[[], Any]] = {
        "forget": lambda: model.forget([1, 7, 12]),
        "relabel": lambda: model.relabel([3, 4], [1, 2]),
        "add": lambda: model.add(pictures(6, seed=8)[0], [0, 1, 2, 3, 4, 4], new_class=True),
        "reweight": lambda: model.reweight(1 + 0.1 * np.arange(len(model.ids_))),
        "forget class": lambda: model.forget_class(4),
        "forget strictly": lambda: model.forget([2], strict=True),
        "undo": lambda: model.undo().undo(),
    }
    for name, edit in edits.items():
        edit()
        out |= {f"{name}: {key}": value for key, value in fitted_numbers(model).items() if key != "tried"}
        out[f"{name}: scores"] = model.decision_function(NEW)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        same = TangentClassifier.from_pretrained(folder, backbone=backbone(network, dtype))
        out["loaded: scores"] = same.decision_function(NEW)
        out["loaded: influence"] = same.influence(NEW[:2])
        out["loaded, forgotten: scores"] = same.forget(same.ids_[:2]).decision_function(NEW)
    return out


def regression(network: str, dtype: torch.dtype) -> Numbers:
    """Two targets, error bars, edits."""
    y = np.stack([Y + 0.1 * np.sin(np.arange(36)), X.mean((1, 2, 3)) / 50], 1)
    model = TangentRegressor(backbone(network, dtype), **STILL).fit(X, y, WEIGHTS)
    mean, std = model.predict(NEW, return_std=True)
    out = fitted_numbers(model) | {"mean": mean, "std": std, "cov": model.predict(NEW, return_cov=True)[1]}
    model.forget([0, 9]).add(NEW, y[:5])
    return out | {"edited": model.predict(NEW), "edited loo": model.loo_predictions_, "drawn": model.sample_y(NEW, 2)}


def with_source(dtype: torch.dtype) -> Numbers:
    """Related pictures behind a fit, and a selection among them."""
    x, y = pictures(40, seed=3)
    source = named(x, np.array(["0", "fly", "2", "elk"])[y], "s")
    model = TangentClassifier(backbone("plain", dtype), **STILL).fit(X[:20], Y[:20], source=source)
    assert model.source_ is not None
    out = fitted_numbers(model) | {"scores": model.decision_function(NEW), "effects": model.source_effects_}
    out |= {"strength": model.source_["strength"], "error": model.source_["loo_error"]}
    model.forget([1, 2])
    out["forgotten: scores"] = model.decision_function(NEW)
    target, network = named(X[:20], Y[:20]), backbone("plain", dtype)
    chosen = tangentune.transport.select_source(target, source, network, budget=12).manifest
    return out | {"chosen": [int(name.removeprefix("s")) for name in chosen.ids], "weights": chosen.weights}


def methods(dtype: torch.dtype) -> Numbers:
    """The four papers' methods and ordinary fine-tuning, a few epochs each."""
    net, data, new = backbone("plain", dtype), named(X, Y), named(NEW, None)
    lqf, joint, features = tangentune.lqf, tangentune.joint, tangentune.gradient_features
    solvers, exact = ("dual", "pcg", "sgd"), lqf.LQFSettings(solver="dual", flip=False)
    out: Numbers = {
        f"lqf {name}": lqf.fit_lqf(net, data, lqf.LQFSettings(solver=name, epochs=5)).logits(new) for name in solvers
    }
    out["lqf explained"] = lqf.explain(lqf.fit_lqf(net, data, exact), net, data).loo()
    ordinary = tangentune.baselines.FineTuneSettings(epochs=3, seed=1)
    other, settings = named(*pictures(24, seed=3), "s"), joint.JointSettings(fine_tune=ordinary)
    tuned = {
        "gradient features": features.fit_gradient_features(net, data, features.GradientFeatureSettings(epochs=4)),
        "fine-tuning": tangentune.baselines.fine_tune(net, data, ordinary),
        "probe": tangentune.baselines.fit_probe(net, data),
        "joint": joint.joint_fine_tune(net, data, other, settings),
    }
    return out | {name: fitted.predict_proba(new) for name, fitted in tuned.items()}


def linearised(network: str, dtype: torch.dtype) -> Numbers:
    """Products with the Jacobian, curvature, Fisher products, the kernel and its Gaussian process."""
    net = backbone(network, dtype)
    x = torch.from_numpy(X[:8]).to(dtype) / 128 - 1
    head = nn.Linear(net.features(x).shape[1], 3).to(dtype)
    seeded(head, 4)
    lin, ntk, generator = Linearization(net, head=head), tangentune.ntk, torch.Generator().manual_seed(1)
    u = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in lin.point().items()}
    pulled = lin.vjp(x, torch.eye(3, dtype=dtype)[torch.arange(8) % 3])
    out: Numbers = {"f0": lin.f0(x), "J u": lin.jvp(x, u)} | {f"J' {name}": value for name, value in pulled.items()}
    for kind in ("kfac", "ekfac", "block_diagonal"):
        curvature = kfac.kfac(lin, [x], kind=kind)
        out |= {f"{kind} {name}": value for name, value in curvature.solve(u, 0.1).items()}
    out |= {f"Fisher {name}": value for name, value in ntk.fisher_vector_product(lin, x, u).items()}
    rows = ntk.survey_rows(lin, x)
    out |= {"kernel": ntk.tangent_kernel(rows, x), "diagonal": ntk.kernel_diagonal(rows, x)}
    out["shared kernel"] = ntk.tangent_kernel(rows, x, outputs="shared")
    y = x.flatten(1)[:, :3].contiguous()
    for space in ("function", "matrix-free"):
        process = ntk.NTKGaussianProcess(lin, noise=10.0, prior_variance=1.0, space=space).fit(x, y)
        mean, std = process.predict(x[:3].flip(-1), return_std=True)
        out |= {f"{space} mean": mean, f"{space} std": std}
    return out | {"leaky": leaky.leaky(net).network.features(x)}


def plankton() -> Numbers:
    """60 real pictures, ten a class in an order of no folder, on the pre-trained network: fit, five new ones, edits."""
    folder, net = datasets.plankton().paths[0].parents[1], load_backbone("mobilenet_v2").with_size(64)
    every = tangentune.load_pictures(folder, contract=net.contract, n_jobs=1)
    labels, order = np.asarray(every.labels), np.argsort([crc32(name.encode()) for name in every.ids], kind="stable")
    rows = np.concatenate([order[labels[order] == name][:10] for name in np.unique(labels)])
    new = every.select(np.setdiff1d(np.arange(len(every)), rows)[:5])
    model = TangentClassifier(net, augment="flip", outer_steps=0).fit(every.select(rows))
    out = fitted_numbers(model) | {"scores": model.decision_function(new), "influence": model.influence(new)}
    out["suspects"] = [model.ids_.index(suspect.id) for suspect in model.suspects(5)]
    model.forget(model.ids_[:3]).relabel([model.ids_[5]], [model.classes_[0]])
    out |= {"edited: scores": model.decision_function(new), "edited: loo": model.loo_predictions_}
    moved = TangentClassifier(net, augment="flip", outer_steps=4).fit(every.select(rows))
    return out | {"moved: scores": moved.decision_function(new), "moved: loo": moved.loo_predictions_}


def cases() -> Iterator[tuple[str, Callable[[], Numbers]]]:
    """Name with precision, and the work, of every case."""
    for precision, dtype in DTYPES.items():
        for network in NETWORKS:
            for option, values in OPTIONS.items() if network == "plain" else [("default", {})]:
                yield f"classifier, {network}, {option}, {precision}", partial(classifier, network, dtype, values)
            yield f"edits, {network}, {precision}", partial(asked_and_edited, network, dtype)
            yield f"linearised, {network}, {precision}", partial(linearised, network, dtype)
        yield f"regressor, {precision}", partial(regression, "plain", dtype)
        yield f"source, {precision}", partial(with_source, dtype)
        yield f"methods, {precision}", partial(methods, dtype)
    yield "plankton, float32", plankton


def main() -> None:
    """Run every case and write the numbers."""
    parser = argparse.ArgumentParser(description="Store the answers of this checkout.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    home, found = Path(tangentune.__path__[0]), {}
    for name, work in cases():
        if options.only in name:
            print(name, flush=True)
            torch.manual_seed(0)
            numbers = {key: own.detach() if isinstance(own, Tensor) else own for key, own in work().items()}
            found[name] = {key: np.asarray(own, np.float64).ravel().tolist() for key, own in numbers.items()}
    origin = {
        "commit": record.git("rev-parse", "HEAD", folder=home),
        "dirty": bool(record.git("status", "--porcelain", ".", folder=home)),
        "torch": torch.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    options.out.write_text(json.dumps(origin | {"cases": found}))


if __name__ == "__main__":
    main()
