"""The report page, its figures and the model card, on models fitted by a small but real calculation."""

from __future__ import annotations

import base64
import doctest
import hashlib
import io
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from tangentune.errors import StoreError
from tangentune.estimators import card, summary
from tangentune.pictures.contract import DataContract
from tangentune.pictures.pictures import Pictures
from tangentune.reports import figures as plots
from tangentune.reports import pages
from tangentune.reports import tables as report_tables
from tangentune.reports.gallery import gallery
from tangentune.reports.model_page import render_report, write_report
from tangentune.solvers import metrics

VOID = {"meta", "br", "img", "link", "hr", "input"}


def fitted(
    names: list[str],
    n: int = 60,
    *,
    regression: bool = False,
    vectors: bool = False,
    blocks: int = 6,
    body_scale: float = 2.0,
    outputs: int = 1,
) -> Any:
    """Coloured noise pictures, one hue a class; kernel ridge on their pixels; leave-one-out by actual inversion."""
    rng = np.random.default_rng(0)
    classes = np.array(sorted(names))
    which = np.arange(n) % len(names)
    hue = np.random.default_rng(1).uniform(60, 200, (len(names), 3))
    pixels = np.clip(hue[which][:, :, None, None] + rng.normal(0, 90, (n, 3, 12, 12)), 0, 255).astype(np.uint8)
    flat = pixels.reshape(n, -1) / 255.0
    targets = flat[:, : 40 * outputs].reshape(n, outputs, -1).mean(2) * 10 if regression else np.eye(len(names))[which]
    flat = flat - flat.mean(0)
    kernel = flat @ flat.T
    unit = np.trace(kernel) / n
    path = np.logspace(-3, 2, 11) * unit
    residuals = []
    for damping in path:
        bordered = np.ones((n + 1, n + 1))
        bordered[:n, :n], bordered[n, n] = kernel + damping * np.eye(n), 0
        inverse = np.linalg.inv(bordered)
        residuals.append(inverse[:n, :n] @ targets / np.diag(inverse)[:n, None])
    errors = np.array([np.mean(np.sum(r**2, axis=1)) for r in residuals])
    best = int(errors.argmin())
    loo = targets - residuals[best]
    body = [f"features.{i}" for i in range(blocks - 1)] if body_scale else []
    scales = {"head": 1.0, **dict.fromkeys(body, body_scale)}
    row = {"metric_power": 0.25, "normalize": True, "body_scale": body_scale, "block_slope": 0.0}
    ids = [f"{classes[k]}/{i:03d}.png" for i, k in enumerate(which)]
    labels = targets[:, 0] if regression and outputs == 1 else (targets if regression else classes[which])
    data = torch.rand(n, 5) if vectors else torch.from_numpy(pixels)
    model = SimpleNamespace(
        damping_=float(path[best]),
        relative_damping_=float(path[best] / unit),
        metric_power_=0.25,
        body_scale_=body_scale,
        normalize_=True,
        block_scales_=scales,
        block_shares_={name: 1 / len(scales) for name in scales},
        loo_predictions_=loo,
        targets_=labels,
        ids_=ids,
        selection_=[
            {**row, "damping": d, "relative_damping": d / unit, "loo_error": float(e)}
            for d, e in zip(path, errors, strict=True)
        ],
        damping_path_={"damping": path, "loo_error": errors},
        kernel_=kernel,
        fit_report_={
            "stages": [{"stage": "rows", "seconds": 1.5, "peak_bytes": 2**30}],
            "total_seconds": 125.2,
            "peak_bytes": 2**30,
        },
        backbone_=SimpleNamespace(
            name="tiny_<net>",
            contract=DataContract((3, 12, 12), licence="MIT & more", source="a test", sha256="ab12"),
        ),
        pictures_=Pictures(data, labels, ids, [("bad/<i>.jpg", "truncated")]),
        source_=None,
        subset="all",
        random_state=0,
    )
    if not regression:
        weights = np.exp(6 * loo)
        model.classes_, model.loo_proba_ = classes, weights / weights.sum(axis=1, keepdims=True)
        model.temperature_, model.thresholds_ = 1 / 6, None
    return model


class Page(HTMLParser):
    """Checks that tags nest and ids are unique; keeps the visible text, the links and the tags' counts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text, self.sources, self.counts, self.ids, self.alts = "", [], {}, [], []
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.ids += [fields["id"]] if "id" in fields else []
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")]
        if tag == "img":
            self.alts.append(fields.get("alt") or "")
        if tag == "svg" or fields.get("class") == "cell":
            assert fields["role"] == "img"
            self.alts.append(fields["aria-label"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def only_our_script(page: str) -> bool:
    """Whether the page has one script, the library's own, and a policy that lets no other run."""
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    code = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', page)
    own = (Path(pages.__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
    return (
        script == own
        and page.count("<script") == 1
        and policy.split("; ")[0] == "default-src 'none'"
        and f"script-src 'sha256-{code}'" in policy.split("; ")
    )


@pytest.mark.parametrize("side", [32, 200])
def test_two_thousand_pictures_have_room_in_three_megabytes(side: int) -> None:
    """By what a further picture costs: noise, which is harder to compress than any photograph."""

    def size(n: int) -> int:
        model = fitted(["a", "b", "c"], n)
        noise = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), np.uint8)
        model.pictures_ = Pictures(torch.from_numpy(noise), model.targets_, model.ids_)
        return len(render_report(model))

    few, many = size(60), size(300)
    assert many + 1700 * (many - few) / 240 < 3_000_000


@pytest.mark.parametrize(
    ("names", "n"),
    [(["cat", "dog"], 12), (["<script>alert(1)</script>", "a&b", "猫 $x_1$", "ünï"], 60)],
)
def test_classification_page_is_whole_and_stands_alone(names: list[str], n: int) -> None:
    model = fitted(names, n)
    text = render_report(model)
    page = Page(text)
    facts = summary.summarise(model)
    assert f"{100 * facts.scores['accuracy']:.1f} %" in page.text
    assert f"{facts.scores['nll']:.3f}" in page.text
    assert f"{100 * facts.scores['ece']:.1f} %" in page.text
    assert all(name in page.text for name in names)
    assert only_our_script(text)
    assert page.counts["img"] == min(n, 24)
    assert page.counts["svg"] == 3
    assert all(alt.strip() for alt in page.alts)
    assert len(page.alts) == n + 3  # the rest is on the sheet
    for source in page.sources:
        assert source.startswith(("data:image/", "#"))
    for word in (
        "tiny_<net>",
        "MIT & more",
        "ab12",
        "bad/<i>.jpg",
        "1 file was left out",
        "2 min 5 s",
        "1 GiB",
    ):
        assert word in page.text
    assert "http://" not in text
    assert "url(" not in re.sub(r"url\((#|data:image/jpeg;base64,)", "", text)


def test_the_same_model_gives_the_same_page() -> None:
    assert render_report(fitted(["a", "b", "c"])) == render_report(fitted(["a", "b", "c"]))


def test_the_least_likely_labels_come_first() -> None:
    model = fitted(["a", "b", "c"])
    model.targets_ = model.targets_.copy()
    model.targets_[7] = "a" if model.targets_[7] != "a" else "b"  # one wrong label
    model.loo_proba_[7] = [0.004, 0.004, 0.004]
    model.loo_proba_[7][list(model.classes_).index(fitted(["a", "b", "c"]).targets_[7])] = 0.992
    tiles = report_tables.hardest(model, summary.summarise(model))
    assert len(tiles) == 60
    assert tiles[0]["id"] == model.ids_[7]
    assert tiles[0]["given"] == model.targets_[7]
    assert tiles[0]["other"]
    assert tiles[0]["mend"].endswith(f"{tiles[0]['id']} {tiles[0]['predicted']}")
    assert tiles[0]["confidence"] == pytest.approx(0.992)
    shares = [tile["given_share"] for tile in tiles]
    assert shares == sorted(shares)
    assert [tile["mend"] is None for tile in tiles] == [not tile["other"] for tile in tiles]


def test_thumbnails_are_the_pictures() -> None:
    model = fitted(["a", "b"])
    found = gallery(model.pictures_, report_tables.hardest(model, summary.summarise(model)))
    tile = found.first[0]
    place = model.ids_.index(tile["id"])
    assert tile["image"]["uri"].startswith("data:image/png;base64,")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile["image"]["uri"].split(",")[1]))))
    assert (seen.transpose(2, 0, 1) == model.pictures_.pixels[place].numpy()).all()
    assert found.sheet is not None
    assert len(found.rest) == 36
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.sheet.uri.split(",")[1]))), float)
    side, last = len(sheet) // found.sheet.columns, found.sheet.columns - 1
    for tile in found.rest:  # and so are the squares of the sheet, as CSS places it behind them
        x, y = (round(last * float(share) / 100) for share in tile["image"]["cell"].replace("%", "").split())
        square = sheet[y * side : (y + 1) * side, x * side : (x + 1) * side]
        own = model.pictures_.thumbnail(tile["position"]).resize((side, side), Image.Resampling.BOX)
        assert np.corrcoef(square.mean(2).ravel(), np.asarray(own, float).mean(2).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_page(outputs: int) -> None:
    model = fitted(["x"], 30, regression=True, outputs=outputs)
    text = render_report(model)
    page = Page(text)
    score = metrics.r2(model.targets_, model.loo_predictions_)
    assert f"{score:.3f}" in page.text
    assert "Predicted against true" in page.text
    assert "calibration" not in page.text
    assert "confusion" not in text.split("</style>")[1]
    assert page.counts["svg"] == 3


def test_vectors_have_no_pictures_and_head_only_is_said() -> None:
    page = Page(render_report(fitted(["a", "b"], vectors=True, body_scale=0.0)))
    assert "img" not in page.counts
    assert "linear probe" in page.text


def test_thousand_classes_show_the_most_confused() -> None:
    names = [f"class {i:04d}" for i in range(1000)]
    model = fitted(["a", "b"], 1000)
    rng = np.random.default_rng(0)
    model.classes_ = np.array(names)
    model.targets_ = np.array(names)
    guess = np.arange(1000)
    guess[:50] = 77  # fifty pictures are taken for one class
    guess[500] = 501
    model.loo_proba_ = rng.uniform(0, 1e-4, (1000, 1000))
    model.loo_proba_[np.arange(1000), guess] = 0.9
    text = render_report(model)
    page = Page(text)
    assert "Of 1000 classes the 20" in page.text.replace("\n", " ")
    assert "other classes" in page.text
    assert len(text) < 100_000 + 1000 * 1000
    assert "class 0077" in page.text
    table = metrics.confusion_matrix(np.arange(1000), guess, 1000)
    shown = report_tables.confusion_rows(table, tuple(names))
    assert "class 0077" in shown["names"]
    assert len(shown["rows"]) == 20
    for row in shown["rows"]:
        assert sum(cell["count"] for cell in row["cells"]) + row["others"] == 1
    assert report_tables.commonest_confusions(table, tuple(names))[0][1] == "class 0077"


def test_confusion_cells_and_class_rows_count_every_picture() -> None:
    model = fitted(["a", "b", "c"])
    table = metrics.confusion_matrix(summary.label_positions(model), model.loo_proba_.argmax(1), 3)
    rows = report_tables.confusion_rows(table, ("a", "b", "c"))["rows"]
    assert [[cell["count"] for cell in row["cells"]] for row in rows] == table.tolist()
    per_class = report_tables.class_rows(table, ("a", "b", "c"))
    assert sum(row["count"] for row in per_class) == 60
    assert per_class[0]["found"] == pytest.approx(table[0, 0] / table[0].sum())


def test_chosen_row_is_marked_once() -> None:
    model = fitted(["a", "b"])
    rows = report_tables.tried_rows(model, summary.summarise(model))
    assert [row["chosen"] for row in rows["first"]].count(True) == 1
    assert rows["first"][0]["chosen"]
    assert rows["first"][0]["worse"] == 0
    assert rows["first"][-1]["worse"] > 0
    assert render_report(model).count('<tr class="chosen">') == 1


def test_figures_change_no_setting_and_need_no_pyplot() -> None:
    before, loaded = dict(dict.items(mpl.rcParams)), "matplotlib.pyplot" in sys.modules
    model = fitted(["a", "b"])
    threads = [threading.Thread(target=render_report, args=(model,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(dict.items(mpl.rcParams)) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_figures_follow_the_pages_colours_and_draw_the_data() -> None:
    figure = plots.blocks_figure({"head": 0.4, "features.0": 0.6}, {"head": 1.0, "features.0": 3.0})
    bars = [patch.get_width() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert bars == [0.6, 0.4]  # input first, head last
    drawing = plots.to_svg(figure, key="k", alt='say "<b>"')
    assert "var(--warm, #b5560a)" in drawing
    assert "var(--accent, #2563c4)" in drawing
    assert not re.search(r"(?<!, )#b5560a", drawing)
    assert 'aria-label="say &quot;&lt;b&gt;&quot;"' in drawing
    assert "features.0" in drawing
    assert all(i.startswith("k-") for i in re.findall(r'\bid="([^"]*)"', drawing))
    assert all(i.startswith("k-") for i in re.findall(r'(?:href="#|url\(#)([^")]*)', drawing))


def test_chosen_damping_sits_on_the_curve() -> None:
    damping, error = np.logspace(-2, 2, 9), np.array([9, 5, 3, 2, 1.5, 2, 3, 5, 9.0])
    axes = plots.damping_figure(damping, error, 1.0).axes[0]
    point = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.asarray(point.get_xydata()).tolist() == [[1.0, pytest.approx(1.5)]]


@pytest.mark.parametrize(
    ("damping", "error", "chosen"),
    [
        ([0.0], [1.0], 0.0),
        ([0.1], [0.5], 0.1),
        ([0.1, 1.0], [np.nan, 0.5], 0.1),
        ([0.1, 1.0], [0.0, 0.0], 0.1),
    ],
)
def test_strange_damping_paths_still_draw(damping: list[float], error: list[float], chosen: float) -> None:
    assert "<svg" in plots.to_svg(plots.damping_figure(damping, error, chosen), key="d", alt="d")


def test_many_points_and_blocks_stay_small() -> None:
    rng = np.random.default_rng(0)
    cloud = plots.to_svg(plots.scatter_figure(rng.normal(size=20000), rng.normal(size=20000)), key="s", alt="s")
    assert len(cloud) < 400_000
    shares = {"head": 0.1, **{f"block.{i}": 0.9 / 500 * (1 + i / 500) for i in range(500)}}
    figure = plots.blocks_figure(shares, dict.fromkeys(shares, 1.0))
    assert len(figure.axes[0].patches) == plots.MANY_BLOCKS + 1


def test_report_file_is_written_whole_or_not(tmp_path: Path) -> None:
    model = fitted(["a", "b"])
    target = write_report(model, tmp_path / "r.html")
    assert target.read_text(encoding="utf-8") == render_report(model)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(model, tmp_path / "r.html" / "below.html")
    with pytest.raises(StoreError, match="cannot write the report"):
        write_report(model, tmp_path / "missing" / "r.html")


def test_card_tells_the_numbers_and_survives_hostile_names() -> None:
    model = fitted(["a|b", "c\nd", "<img src=x>", "*e*"])
    text = card.render_card(summary.summarise(model))
    facts = summary.summarise(model)
    assert f"| accuracy | {100 * facts.scores['accuracy']:.1f} %" in text
    assert r"| a\|b | 15 |" in text
    assert "| c d | 15 |" in text
    assert "<img" not in text
    assert text.startswith("---\nlibrary_name: tangentune\n")
    assert 'from_pretrained("path' in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace(r"\|", "").count("|") == 3 for line in table)


def test_card_of_a_regressor_and_of_many_classes() -> None:
    text = card.render_card(summary.summarise(fitted(["x"], 20, regression=True)))
    assert "TangentRegressor.from_pretrained" in text
    assert "| R² |" in text
    assert "accuracy" not in text
    text = card.render_card(summary.summarise(fitted([f"k{i:03d}" for i in range(70)], 140)))
    assert "| 20 more classes | 40 |" in text


def test_numbers_for_people() -> None:
    assert [summary.nice_bytes(b) for b in (0, 900, 1536, 150 * 2**20, 2**40, None)] == [
        "0 B",
        "900 B",
        "1.5 KiB",
        "150 MiB",
        "1 TiB",
        "not measured",
    ]
    assert [summary.nice_seconds(s) for s in (0.04, 9.9, 9.96, 59.7, 125.2, 7260)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 0 s",
        "2 min 5 s",
        "2 h 1 min",
    ]


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(card)
    assert result.attempted
    assert not result.failed
