"""What an installed tangentune must be able to do, in a folder where nothing else is: `python tests/release_fit.py`.

A network of one's own by the command line, exact leave-one-out against a real fit, a page, an edit; and a network whose
weights the extra `weights` brings.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

NETWORK = """
import torch
from torch import nn
from tangentune import Backbone

torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


def network():
    return Backbone(NETWORK.eval(), input_size=(3, 16, 16))
"""
# What owes nothing to the pictures, so that a fit to fewer of them is the edited one.
FIXED = {"outer_steps": 0, "damping": 1.0, "metric_power": 0, "body_scale": 1.0, "probe_space": "isotropic"}


def run(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, "-m", "tangentune", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def main() -> None:
    """Try it all; an error is the answer."""
    import tangentune

    assert Path(tangentune.__file__).is_relative_to(Path(sys.prefix)), "that is not the installed one"
    draw = np.random.default_rng(0)
    for i in range(24):
        pixels = draw.integers(0, 150, (20, 20, 3))
        pixels[:, :, i % 2] += 60
        file = Path("pictures", ("red", "green")[i % 2], f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    Path("own.py").write_text(NETWORK)
    own = ["--backbone", "own:network", "-q"]
    fixed = [word for name, value in FIXED.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    said = json.loads(
        run("fit", "pictures", "--out", "m", *own, *fixed, "--augment", "none", "--normalize", "false", "--json")
    )
    assert 0 <= said["loo"]["accuracy"] <= 1, said
    run("forget", "m", "red/0.png", *own)
    sys.path.insert(0, "")
    network = import_module("own").network
    edited = tangentune.TangentClassifier.from_pretrained("m", backbone=network())
    assert len(edited.ids_) == 23
    again = tangentune.TangentClassifier(network(), augment=None, normalize=False, **FIXED).fit(
        [f"pictures/{name}" for name in edited.ids_], edited.targets_
    )
    np.testing.assert_allclose(edited.loo_predictions_, again.loo_predictions_, rtol=0, atol=1e-5)
    assert "<script>" in tangentune.write_report(edited, "r.html").read_text(encoding="utf-8")
    lite = tangentune.TangentClassifier("efficientnet_lite0", input_size=32, subset="none", outer_steps=0, augment=None)
    assert lite.fit("pictures").loo_score_ > 0.5


if __name__ == "__main__":
    main()
