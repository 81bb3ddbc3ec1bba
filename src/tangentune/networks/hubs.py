"""Pre-trained networks of timm, torchvision and transformers (each imported when asked for), and their contracts."""

from __future__ import annotations

import difflib
import importlib
import inspect
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

from tangentune._files import from_json, user_path
from tangentune.errors import BackboneError, MissingExtraError, cannot_import, first_line
from tangentune.networks.features import Loaded, Tap, pool_tokens
from tangentune.pictures.contract import INTERPOLATIONS, DataContract

HUBS = {"timm": "NAME", "torchvision": "NAME", "hf": "DIR"}
# PIL's numbers for resampling, as transformers writes them; box and Hamming have no counterpart here.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "bilinear", 5: "bilinear"}
PATIENCE = 5.0  # seconds for a server's first answer
CONVNEXT_SQUASH = 384  # from this size on, crop_pct no longer crops there


def load_from_hub(name: str) -> Loaded:
    """The network behind "timm:NAME", "torchvision:NAME" or "hf:DIR", with its own data contract.

    Features are the pooled penultimate ones: timm's `forward_head(pre_logits=True)`; torchvision's input of the
    classifier; for transformers the `pooler_output` where pooling has no trained layer of its own, else the class
    token, else the mean over tokens.
    """
    prefix, _, rest = name.partition(":")
    if not rest:
        raise BackboneError(f"{name!r} names no network; write {prefix}:{HUBS[prefix]}")
    return {"timm": _load_timm, "torchvision": _load_torchvision, "hf": _load_hf}[prefix](rest)


def install_command(package: str) -> str:
    """The command that adds a hub package to the torch that is here, without changing torch."""
    if package == "transformers":
        return "pip install transformers"
    major, minor = torch.__version__.split(".")[:2]
    # Each torchvision release is built for one torch: 0.15 for 2.0, one up each time.
    vision = f"torchvision==0.{int(minor) + 15}.*" if major == "2" else "torchvision"
    return f'pip install "{vision}"' if package == "torchvision" else f'pip install timm "{vision}"'


def _import(package: str) -> ModuleType:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # a build for another torch fails in its own ways: operators, symbols, half-read modules
        command, build = install_command(package), torch.__version__.partition("+")[2]
        if build and "torchvision" in command and not isinstance(error, ModuleNotFoundError):
            # The same command would bring the same wheel again, of torch's usual build.
            command += f" --extra-index-url INDEX, INDEX being where the {build} build of torch came from"
        raise cannot_import(package, error, command) from error


def _load_timm(name: str) -> Loaded:
    timm = _import("timm")
    local = ":" in name or "/" in name  # timm's own "hf-hub:ORG/NAME" and "local-dir:PATH"
    if not local and not timm.is_model(name):
        raise BackboneError(_unknown("timm", name, timm.list_models()))
    if name.startswith("local-dir:") and not user_path(name[10:]).is_dir():
        raise BackboneError(
            f"timm:{name} names no directory; write timm:local-dir:DIR, with its config.json and weights"
        )
    with _fetching(f"timm:{name}"), _without_retries(f"timm:{name}"):
        try:  # lets vision transformers take other sizes, by interpolating their position embedding
            module = timm.create_model(name, pretrained=True, dynamic_img_size=True)
        except TypeError:  # other families have no such option, and need none
            module = timm.create_model(name, pretrained=True)
    config = timm.data.resolve_model_data_config(module)
    stated = module.pretrained_cfg
    tag = ".".join(str(stated[key]) for key in ("architecture", "tag") if stated.get(key))
    source = f"timm {timm.__version__}: {stated.get('hf_hub_id') or stated.get('url') or tag or name}"
    return Loaded(module, timm_contract(config, stated.get("license"), source), timm_features)


def timm_features(module: Any, x: Tensor) -> Tensor:
    """Pooled features before the classifier."""
    return module.forward_head(module.forward_features(x), pre_logits=True)


def _load_torchvision(name: str) -> Loaded:
    models = _import("torchvision").models
    architecture, _, tag = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise BackboneError(_unknown("torchvision", architecture, known))
    choices = models.get_model_weights(architecture)
    if tag and tag not in choices.__members__:
        raise BackboneError(
            f"torchvision:{architecture} has no weights {tag!r}; there are {', '.join(choices.__members__)}"
        )
    weights = choices[tag or "DEFAULT"]
    with _fetching(f"torchvision:{name}"):
        # torchvision's builders unpickle without restriction: first prove the cached file holds tensors only.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        module = models.get_model(architecture, weights=weights)
    source = f"torchvision: {weights.url}"
    head = _last_layer(module, len(weights.meta["categories"]))
    return Loaded(module, torchvision_contract(weights.transforms(), source), Tap(head, "input"))


def _last_layer(module: nn.Module, classes: int) -> str:
    """Name of the last linear or convolutional layer, the one that gives the class scores."""
    for name, part in reversed(list(module.named_modules())):
        outputs = getattr(part, "out_features", getattr(part, "out_channels", None))
        if isinstance(part, nn.Linear | nn.Conv2d) and outputs == classes:
            return name
    raise BackboneError(
        f"no layer of {type(module).__name__} gives {classes} class scores; use Backbone(module, features=...)"
    )


def _load_hf(directory: str) -> Loaded:
    transformers = _import("transformers")
    path = user_path(directory)
    if not (path / "config.json").is_file():
        raise BackboneError(
            f"hf:{directory} must be a local directory with config.json, weights and "
            "preprocessor_config.json; get one with `hf download ORG/NAME --local-dir DIR`"
        )
    processor = _read_processor(path)
    with _fetching(f"hf:{directory}"):
        model, report = transformers.AutoModel.from_pretrained(
            str(path),
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=torch.float32,  # half precision loses the tangents' small digits
            output_loading_info=True,
        )
    module = getattr(model, "vision_model", model)  # the picture half of models such as CLIP
    half = "" if module is model else "vision_model."
    name = type(module).__name__
    if getattr(module, "main_input_name", "pixel_values") != "pixel_values":
        raise BackboneError(f"hf:{directory} holds a {name}, which takes {module.main_input_name}, not pictures")
    pool = "pooler"
    if any(isinstance(part, nn.Linear) for part in getattr(module, "pooler", nn.Module()).modules()):
        module.pooler, pool = None, "tokens"  # a trained tanh layer, random in classification checkpoints
    lost = [str(key) for field in ("missing_keys", "mismatched_keys") for key in report[field]]
    lost = [key for key in lost if key.startswith(half) and "pooler." not in key]
    if lost:
        raise BackboneError(
            f"hf:{directory} lacks {len(lost)} weights of {name}, such as {lost[0]}, which would be random"
        )
    card = path / "README.md"
    licence = card_licence(card.read_text("utf-8", "replace")) if card.is_file() else None
    interpolate = "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
    channels = int(getattr(module.config, "num_channels", 3))
    source = f"transformers {name}: {path.resolve().name}"
    return Loaded(module, hf_contract(processor, channels, licence, source), HFFeatures(pool, interpolate))


@final
@dataclass(frozen=True)
class HFFeatures:
    """Pooled features of a transformers model; position embeddings are interpolated to other sizes."""

    pool: str
    interpolate: bool

    def __call__(self, module: nn.Module, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, d), or (n, d, h, w) for those that return maps."""
        options = {"interpolate_pos_encoding": True} if self.interpolate else {}
        output = module(pixel_values=x, **options)
        pooled = getattr(output, "pooler_output", None)
        if self.pool == "pooler" and isinstance(pooled, Tensor):
            return pooled
        return pool_tokens(output.last_hidden_state, module)


def _read_processor(path: Path) -> dict[str, Any]:
    """Fields of the picture preprocessor, from whichever of the two files holds them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = path / name
        if file.is_file():
            try:
                fields = from_json(file.read_text("utf-8"))
            except ValueError as error:
                raise BackboneError(f"{file} is not valid JSON ({first_line(error)})") from error
            return fields.get("image_processor", fields)
    raise BackboneError(
        f"{path} has no preprocessor_config.json, so how pictures are prepared is unknown; save the image "
        "processor there, or wrap the network with Backbone(module, input_size=..., mean=..., std=...)"
    )


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """While a hub's loader runs: its many kinds of failure become one."""
    patience = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(patience or 6 * PATIENCE)  # torch's own downloads would wait for ever
        yield
    except Exception as error:  # network, cache, file format: each library has its own types
        told = first_line(error)
        if isinstance(error, ImportError) or any(word in str(error) for word in ("torchvision::", "Failed to import")):
            _import("torchvision")  # says what is wrong with it, as there usually is
            raise MissingExtraError(f"{name} needs a package that cannot be imported ({told}); install that") from error
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(
            f"the weights of {name} could not be loaded ({type(error).__name__}: {told}); the "
            "first use needs the network, later ones the cache"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


@contextmanager
def _without_retries(name: str) -> Iterator[None]:
    """Where the Hugging Face hub does not answer: take what its cache holds, or fail at once, not after a minute."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    silence = "" if hub.HF_HUB_OFFLINE else _silence(hub.ENDPOINT)
    if not silence:
        yield
        return
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        where = f"the weights of {name} are not in the cache of this machine, and {hub.ENDPOINT} cannot be reached"
        raise BackboneError(f"{where} ({silence}); load them once with a connection, or copy the cache") from error
    finally:
        hub.HF_HUB_OFFLINE = False


def _silence(address: str) -> str:
    """Why a server does not answer; empty where it answers anything at all. Waits a few seconds at most."""
    heard = ["it does not answer"]

    def ask() -> None:
        try:
            urlopen(Request(address, method="HEAD"), timeout=PATIENCE).close()
            heard.append("")
        except HTTPError:
            heard.append("")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)  # a certificate is the business of who loads
            heard.append("" if isinstance(reason, ssl.SSLError) else str(reason))

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(PATIENCE)
    return heard[-1]


def _unknown(prefix: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 3)
    hint = f"; did you mean {', '.join(f'{prefix}:{n}' for n in near)}?" if near else ""
    return f"{prefix} has no network {name!r}{hint}"


def timm_contract(config: dict[str, Any], licence: str | None, source: str) -> DataContract:
    """From `timm.data.resolve_model_data_config`."""
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    crop = min(float(config["crop_pct"]), 1.0) if config.get("crop_mode", "center") == "center" else None
    interpolation = config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic"
    return DataContract(tuple(config["input_size"]), mean, std, interpolation, crop, licence or "unknown", source)


def torchvision_contract(transforms: Any, source: str) -> DataContract:
    """From the transforms that come with torchvision's classification weights (their licence is not stated)."""
    size, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    mean, std = tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))
    stated = transforms.interpolation.value
    interpolation = stated if stated in INTERPOLATIONS else "bicubic"
    return DataContract((len(mean), size, size), mean, std, interpolation, min(size / resize, 1.0), source=source)


def hf_contract(fields: dict[str, Any], channels: int, licence: str | None, source: str) -> DataContract:
    """From the fields of a `preprocessor_config.json` of transformers, for a model of so many channels."""
    height, width, crop = _geometry(fields)
    mean, std = _normalisation(fields, channels)
    interpolation = RESAMPLING.get(fields.get("resample", 3), "bicubic")
    return DataContract((channels, height, width), mean, std, interpolation, crop, licence or "unknown", source)


def card_licence(card: str) -> str | None:
    """The `license:` line in the header (between --- lines) of a model card."""
    parts = card.split("---")
    lines = parts[1].splitlines() if card.startswith("---") and len(parts) > 2 else []
    found = [line.removeprefix("license:").strip() for line in lines if line.startswith("license:")]
    return found[0] if found and found[0] else None


def _geometry(fields: dict[str, Any]) -> tuple[int, int, float | None]:
    """Height, width, and the share of the shorter side that is kept (None: squashed)."""
    size = fields.get("size")
    cropped = fields.get("do_center_crop", False) and fields.get("crop_size")
    if isinstance(size, int):
        size = {"shortest_edge": size} if cropped or "crop_pct" in fields else {"height": size, "width": size}
    if isinstance(size, dict) and size.get("shortest_edge"):
        edge, pair = int(size["shortest_edge"]), None
    elif isinstance(size, dict) and size.get("height") and size.get("width"):
        pair = (int(size["height"]), int(size["width"]))
        edge = min(pair)
    else:
        raise BackboneError(
            f"the preprocessor's size={size} fixes no height and width; wrap the network with Backbone(module, ...)"
        )
    if cropped:
        crop = fields["crop_size"]
        kept = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
        return *kept, min(min(kept) / edge, 1.0)
    if pair:
        return *pair, None
    if "crop_pct" in fields:
        return edge, edge, float(fields["crop_pct"]) if edge < CONVNEXT_SQUASH else None
    return edge, edge, 1.0


def _normalisation(fields: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1], whatever scale the preprocessor rescales bytes to."""
    mean, std = [0.0] * channels, [1.0] * channels
    if fields.get("do_normalize", True):
        if not fields.get("image_mean") or not fields.get("image_std"):
            raise BackboneError(
                "the preprocessor normalises but states no image_mean and image_std; use Backbone(module, ...)"
            )
        mean, std = _per_channel(fields["image_mean"], channels), _per_channel(fields["image_std"], channels)
        if fields.get("include_top"):  # EfficientNet there divides by std once more
            std = [value * value for value in std]
    # Bytes b become (b f - o - mean) / std, and u = b / 255 is what a contract's mean and std apply to.
    factor = 255 * (float(fields.get("rescale_factor", 1 / 255)) if fields.get("do_rescale", True) else 1.0)
    offset = 1.0 if fields.get("rescale_offset") else 0.0
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)


def _per_channel(value: Any, channels: int) -> list[float]:
    return [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]
