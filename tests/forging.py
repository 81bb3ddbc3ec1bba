"""Saved models changed by hand, their checksums put right again."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tangentune.estimators import audit


def reseal(folder: Path, config: dict[str, Any]) -> None:
    config["config_sha256"] = audit.seal(config, "config_sha256")
    (folder / "config.json").write_text(json.dumps(config))


def with_arrays(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], name: str = "tensors") -> None:
    """Other arrays, listed with their own checksum."""
    config = json.loads((folder / "config.json").read_text())
    file = folder / config[name]["file"]
    arrays = load_file(file)
    change(arrays)
    save_file({key: array.contiguous() for key, array in arrays.items()}, file, metadata={"format": "pt"})
    facts = {"bytes": file.stat().st_size, "sha256": sha256(file.read_bytes()).hexdigest(), "names": sorted(arrays)}
    reseal(folder, config | {name: config[name] | facts})
