"""Pictures of random colours, alone and in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = ("png", "jpg", "bmp", "tif", "webp", "gif", "ppm", "jp2", "avif")
SUFFIXES = tuple(one for one in SUFFIXES if f".{one}" in Image.registered_extensions())  # older Pillow has no AVIF


def colours(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def class_folder(root: Path) -> Path:
    """Six pictures in the classes cat and dog; `colours(6)` in the order of their ids."""
    for i, picture in enumerate(colours(6)):
        path = root / ("cat" if i < 4 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return root
