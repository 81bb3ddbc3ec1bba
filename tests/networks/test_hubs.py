"""Networks of timm, torchvision and transformers: how they are found, fed, and where their features are."""

import contextlib
import functools
import http.server
import importlib
import json
import socket
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tangentune.errors import BackboneError, MissingExtraError
from tangentune.networks import hubs
from tangentune.networks.backbone import load_backbone
from tangentune.networks.packaged import MobileNetV2

VIT = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


LIBRARIES: list[torch.library.Library] = []  # declared operators last as long as their library object


@functools.cache
def vision() -> Any:
    """torchvision, also beside a CPU build of torch that lacks its compiled operators."""
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:  # "operator torchvision::nms does not exist": declare what its import asks for
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            LIBRARIES[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return pytest.importorskip("torchvision")


# Absent, broken, unknown


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("timm:resnet18", "timm", r'pip install timm "torchvision==0\.\d+\.\*"'),
        ("torchvision:resnet18", "torchvision", r'pip install "torchvision==0\.\d+\.\*"'),
        ("hf:somewhere", "transformers", "pip install transformers"),
    ],
)
def test_absent_package_gives_the_exact_command(name, package, command, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"^{package} is not installed; run: {command}$"):
        load_backbone(name)


def test_torchvision_is_asked_for_in_the_release_built_for_this_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert hubs.install_command("torchvision") == 'pip install "torchvision==0.28.*"'
    monkeypatch.setattr(torch, "__version__", "2.6.1")
    assert hubs.install_command("timm") == 'pip install timm "torchvision==0.21.*"'


@pytest.mark.parametrize("error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no libz"),
                                   OSError("libcudart.so.12: cannot open"), AttributeError("half")])  # fmt: skip
def test_package_that_breaks_on_import_says_why(error, monkeypatch):
    def broken(_name):
        raise error

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(MissingExtraError, match=rf"beside torch .* \({error}\); run: .*--no-deps timm"):
        load_backbone("timm:resnet18")


@pytest.mark.parametrize(("version", "end"), [
    ("2.13.0+cpu", r"[*]\" --extra-index-url INDEX, INDEX being where the cpu build of torch came from$"),
    ("2.13.0", r"==0\.28\.[*]\"$"),
])  # fmt: skip
def test_another_build_is_not_mended_by_fetching_the_same_again(version, end, monkeypatch):
    def broken(_name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr("importlib.import_module", broken)
    for name in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(MissingExtraError, match=end):
            load_backbone(name)


# timm


@pytest.fixture
def timm(monkeypatch) -> Any:
    """timm that starts its networks at random instead of downloading."""
    vision()
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def create_random(name, pretrained, **options):
        assert pretrained
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", create_random)
    return timm


@pytest.mark.parametrize(
    ("name", "width", "crop"),
    [("resnet18", 512, 0.95), ("vit_tiny_patch16_224", 192, 0.9), ("tf_efficientnet_lite0", 1280, 0.875)],
)
def test_timm_features_are_the_pooled_penultimate_ones(timm, name, width, crop):
    backbone = load_backbone(f"timm:{name}")
    assert backbone.contract.input_size == (3, 224, 224)
    assert backbone.contract.crop == crop
    assert backbone.contract.licence == "apache-2.0"
    assert f"timm {timm.__version__}" in backbone.contract.source
    smaller = backbone.with_size(96)  # also for vision transformers
    smaller.check()
    x = torch.randn(2, 3, 96, 96)
    phi = smaller.features(x)
    assert phi.shape == (2, width)
    network: Any = backbone.module
    torch.testing.assert_close(network.get_classifier()(phi), network(x))
    if name == "tf_efficientnet_lite0":
        assert backbone.contract.mean == (0.5, 0.5, 0.5)


def test_unknown_timm_names_give_close_ones(timm):
    with pytest.raises(BackboneError, match="no network 'resnet181'; did you mean timm:resnet18"):
        load_backbone("timm:resnet181")
    with pytest.raises(BackboneError, match=r"weights of timm:resnet18.nowhere could not be loaded"):
        load_backbone("timm:resnet18.nowhere")


def test_a_directory_that_is_not_there_is_no_question_of_the_network(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    with pytest.raises(BackboneError, match=r"names no directory; write timm:local-dir:DIR"):
        load_backbone(f"timm:local-dir:{tmp_path / 'absent'}")


# torchvision


@pytest.fixture
def random_weights(monkeypatch) -> Any:
    """torchvision whose weight files hold random numbers; counts restricted and free readings."""
    torchvision = vision()
    reads: list[bool] = []
    states = {}
    for name in ("resnet18", "mobilenet_v2", "squeezenet1_1"):
        weights = torchvision.models.get_model_weights(name)
        states[weights.__name__] = torchvision.models.get_model(name, weights=None).state_dict()

    def get_state_dict(self, progress, check_hash, weights_only=False):
        assert progress
        assert check_hash
        reads.append(weights_only)
        return states[type(self).__name__]

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    return reads


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v2.IMAGENET1K_V1", 1280)])
def test_torchvision_features_are_what_the_classifier_sees(random_weights, name, width):
    backbone = load_backbone(f"torchvision:{name}")
    assert random_weights == [True, False]  # proved to hold tensors only before the builder reads it freely
    assert backbone.contract.crop == 0.875
    assert backbone.contract.interpolation == "bilinear"
    assert backbone.contract.source.endswith(".pth")
    smaller = backbone.with_size(64)
    smaller.check()
    x = torch.randn(2, 3, 64, 64)
    phi = smaller.features(x)
    assert phi.shape == (2, width)
    network: Any = backbone.module
    head = network.fc if name == "resnet18" else network.classifier
    torch.testing.assert_close(head(phi), network(x))


def test_torchvision_network_that_ends_in_a_convolution(random_weights):
    backbone = load_backbone("torchvision:squeezenet1_1").with_size(64)
    assert backbone.features(torch.randn(2, 3, 64, 64)).shape == (2, 512)


def test_unknown_torchvision_names_give_close_ones():
    vision()
    with pytest.raises(BackboneError, match="no network 'resnt18'; did you mean torchvision:resnet18"):
        load_backbone("torchvision:resnt18")
    with pytest.raises(BackboneError, match="no weights 'V7'; there are IMAGENET1K_V1, DEFAULT"):
        load_backbone("torchvision:resnet18.V7")
    with pytest.raises(BackboneError, match="no network 'fasterrcnn_resnet50_fpn'"):
        load_backbone("torchvision:fasterrcnn_resnet50_fpn")


def test_torchvision_weights_that_cannot_be_fetched_say_so(monkeypatch):
    def offline(self, **_options):
        message = "no route to host"
        raise OSError(message)

    monkeypatch.setattr(vision().models.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(BackboneError, match=r"weights of torchvision:resnet18 could not be loaded .*no route"):
        load_backbone("torchvision:resnet18")


def test_mobilenet_equals_torchvisions_definition():
    reference = vision().models.mobilenet_v2(weights=None).eval()
    mine = MobileNetV2().eval()
    mine.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), reference(x), rtol=1e-5, atol=1e-6)


# transformers


@pytest.fixture
def transformers() -> Any:
    if "torchvision" not in sys.modules:
        with contextlib.suppress(pytest.skip.Exception):
            vision()  # transformers does without it, but not with a broken one
    return pytest.importorskip("transformers")


@pytest.fixture
def saved(tmp_path):
    """Save a model with a preprocessor file and a model card; returns the backbone's name."""

    def save(model, fields=VIT):
        model.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
        (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        return f"hf:{tmp_path}"

    return save


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def test_class_token_of_a_classifier_without_trained_pooler(transformers, saved):
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, num_labels=5)).eval()
    backbone = load_backbone(saved(model))
    assert backbone.contract.input_size == (3, 32, 32)
    assert (backbone.contract.std, backbone.contract.licence) == ((0.25,) * 3, "apache-2.0")
    backbone.check()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.classifier(backbone.features(x)), model(x).logits)
    assert load_backbone(backbone.name) == backbone  # nothing random is left in it
    backbone.with_size(48).check()  # position embeddings are interpolated


def test_pooled_maps_of_a_convolutional_network(transformers, saved):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    model = transformers.ResNetForImageClassification(config).eval()
    backbone = load_backbone(saved(model))
    backbone.check()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.classifier(backbone.features(x)), model(x).logits)


def test_picture_half_of_a_picture_and_text_model(transformers, saved):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    text |= {"intermediate_size": 16, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=SMALL)).eval()
    backbone = load_backbone(saved(model))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.features(x), model.vision_model(x).pooler_output)


def test_directories_that_lack_something_are_refused(transformers, saved, tmp_path):
    with pytest.raises(BackboneError, match=r"must be a local directory with config.json"):
        load_backbone("hf:google/vit-base-patch16-224")
    model = transformers.ViTModel(transformers.ViTConfig(**SMALL))
    name = saved(model)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"preprocessor_config.json is not valid JSON"):
        load_backbone(name)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match="how pictures are prepared is unknown"):
        load_backbone(name)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": VIT}))
    assert load_backbone(name).contract.mean == (0.5,) * 3
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BackboneError, match=r"weights of hf:.* could not be loaded"):
        load_backbone(name)


def test_missing_weights_are_not_replaced_by_random_ones(transformers, saved, tmp_path):
    from safetensors.torch import load_file, save_file

    name = saved(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    state = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in state if key.endswith("layernorm.weight") or "layernorm_before.weight" in key)
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 weights of ViTModel, such as .*weight, which would be random"):
        load_backbone(name)


def test_text_models_are_refused(transformers, saved):
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    with pytest.raises(BackboneError, match="holds a BertModel, which takes input_ids, not pictures"):
        load_backbone(saved(transformers.BertModel(config)))


# No connection, broken neighbours


def hub_without(monkeypatch: pytest.MonkeyPatch, endpoint: str, loads: Any) -> Any:
    """A timm that loads as `loads(name, hub)` does, beside a hub of that address."""
    hub = SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT=endpoint)
    timm = SimpleNamespace(is_model=lambda _: True, create_model=lambda name, **_: loads(name, hub))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(hubs, "PATIENCE", 0.3)
    for name, module in (("timm", timm), ("huggingface_hub", hub), ("huggingface_hub.constants", hub)):
        monkeypatch.setitem(sys.modules, name, module)
    return hub


@pytest.mark.parametrize("silent", [False, True])
def test_without_a_connection_it_fails_at_once(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the connection is refused or nobody answers: the hub is told, and then looks into its cache alone."""

    def load(name: str, hub: Any) -> Any:
        assert hub.HF_HUB_OFFLINE, "a minute of retries"
        message = f"{name} is not in the cache; set HF_HUB_OFFLINE=0"
        raise FileNotFoundError(message)

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        hub = hub_without(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}", load)
        began = time.perf_counter()
        with pytest.raises(
            BackboneError, match=r"^the weights of timm:resnet18 are not in the cache .* cannot be reach"
        ):
            load_backbone("timm:resnet18")
        assert time.perf_counter() - began < 5
    assert not hub.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None


def test_with_a_connection_the_hub_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: str, hub: Any) -> Any:
        assert not hub.HF_HUB_OFFLINE
        message = "no such tag"
        raise ValueError(message)

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:  # answers 501
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub_without(monkeypatch, f"http://127.0.0.1:{server.server_port}", load)
        with pytest.raises(BackboneError, match=r"of timm:resnet18 could not be loaded \(ValueError: no such tag\)"):
            load_backbone("timm:resnet18")
        server.shutdown()


@pytest.mark.parametrize("error", [
    RuntimeError("operator torchvision::nms does not exist"), ImportError("requires the torchvision library"),
    RuntimeError("Failed to import transformers.models.vit because of the following error"),
], ids=["operator", "absent", "lazily"])  # fmt: skip
def test_a_broken_torchvision_is_named_and_not_the_connection(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not "install it" where it is installed, which would go round in a circle."""

    def load(_: str, hub: Any) -> Any:
        raise error

    def imports(name: str) -> Any:
        if name == "torchvision":
            message = "partially initialized module 'torchvision' has no attribute 'extension'"
            raise AttributeError(message)
        return sys.modules[name]

    hub = hub_without(monkeypatch, "", load)
    hub.HF_HUB_OFFLINE = True
    monkeypatch.setattr("importlib.import_module", imports)
    with pytest.raises(
        MissingExtraError, match=r"torchvision is installed but .*--force-reinstall --no-deps .torchvis"
    ):
        load_backbone("timm:resnet18")


def test_gpytorch_that_breaks_on_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tangentune.methods.ntk.gpytorch_kernel"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "gpytorch", None)
    with pytest.raises(
        MissingExtraError, match=r"^gpytorch is not installed; run: pip install 'tangentune\[gpytorch\]'$"
    ):
        importlib.import_module(name)
