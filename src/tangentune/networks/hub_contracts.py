"""Data contracts read from what timm, torchvision and transformers say about their weights. Pure functions."""

from __future__ import annotations

from typing import Any

from tangentune.errors import BackboneError
from tangentune.pictures.contract import INTERPOLATIONS, DataContract

# PIL's numbers for resampling, as transformers writes them; box and Hamming have no counterpart here.
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "bilinear", 5: "bilinear"}
CONVNEXT_SQUASH = 384  # from this size on, crop_pct no longer crops there


def timm_contract(config: dict[str, Any], licence: str | None, source: str) -> DataContract:
    """From `timm.data.resolve_model_data_config`."""
    mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
    crop = min(float(config["crop_pct"]), 1.0) if config.get("crop_mode", "center") == "center" else None
    interpolation = _interpolation(config["interpolation"])
    return DataContract(tuple(config["input_size"]), mean, std, interpolation, crop, licence or "unknown", source)


def torchvision_contract(transforms: Any, source: str) -> DataContract:
    """From the transforms that come with torchvision's classification weights (their licence is not stated)."""
    size, resize = int(transforms.crop_size[0]), int(transforms.resize_size[0])
    mean, std = tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))
    interpolation = _interpolation(transforms.interpolation.value)
    return DataContract((len(mean), size, size), mean, std, interpolation, min(size / resize, 1.0), source=source)


def hf_contract(fields: dict[str, Any], channels: int, licence: str | None, source: str) -> DataContract:
    """From the fields of a `preprocessor_config.json` of transformers, for a model of so many channels.

    Raises:
        BackboneError: if the file does not fix a picture size or a normalisation.
    """
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


def _interpolation(name: str) -> str:
    return name if name in INTERPOLATIONS else "bicubic"


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
        message = (
            f"the preprocessor's size={size} fixes no height and width; wrap the network with Backbone(module, ...)"
        )
        raise BackboneError(message)
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
            message = "the preprocessor normalises but states no image_mean and image_std; use Backbone(module, ...)"
            raise BackboneError(message)
        mean, std = _per_channel(fields["image_mean"], channels), _per_channel(fields["image_std"], channels)
        if fields.get("include_top"):  # EfficientNet there divides by std once more
            std = [value * value for value in std]
    # Bytes b become (b f - o - mean) / std, and u = b / 255 is what a contract's mean and std apply to.
    factor = 255 * (float(fields.get("rescale_factor", 1 / 255)) if fields.get("do_rescale", True) else 1.0)
    offset = 1.0 if fields.get("rescale_offset") else 0.0
    return tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std)


def _per_channel(value: Any, channels: int) -> list[float]:
    return [float(value)] * channels if isinstance(value, int | float) else [float(v) for v in value]
