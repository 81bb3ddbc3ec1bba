"""The pages that the library writes, in a real browser: light, dark, wide, narrow, by keyboard, bare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser_cases import NEEDED, chromium, faults
from cli_cases import small
from PIL import Image
from small import FIXED, pictures

from tangentune import Pictures, TangentClassifier, TangentRegressor, write_report
from tangentune.methods.source_selection.select import select_source
from tangentune.reports.evaluation import evaluate, render_evaluation
from tangentune.reports.explanation import explain
from tangentune.reports.explanation_page import render_explanations, render_suspects
from tangentune.reports.gallery import links
from tangentune.reports.pages import write_page
from tangentune.reports.selection_page import write_selection_page

pytestmark = NEEDED
N = 28  # four of them on the sheet
FEW = 12  # of several labels each, which make long pages
X, Y = pictures(N + 26)
NAMES = np.array(["ant", "bee <i>", "a rather long name of a class", "dog"])[Y]
IDS = [f"{NAMES[i]}/day {i % 3} & more/{i:03d}.png" for i in range(N)]
PAGES = ("report", "numbers", "labels", "suspects", "explain", "evaluation", "evaluated labels", "selection")


def given(first: int, last: int, labels: Any) -> Pictures:
    names = IDS[:last] if first == 0 else [f"new/{i}.png" for i in range(first, last)]
    return Pictures(torch.from_numpy(X[first:last]), labels, names)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every page, beside the pictures it is about."""
    folder = tmp_path_factory.mktemp("site")
    for i, name in enumerate(IDS):
        (folder / "originals" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i].transpose(1, 2, 0)).save(folder / "originals" / name)
    model = TangentClassifier(small(), **FIXED).fit(given(0, N, NAMES[:N]))
    numbers = TangentRegressor(small(), **FIXED).fit(given(0, N, 1000 * X[:N].mean((1, 2, 3))))
    several = [[str(NAMES[i]), "wet"] if i % 3 else ["wet"] for i in range(len(X))]
    labels = TangentClassifier(small(), **FIXED).fit(given(0, FEW, None), several[:FEW])
    new = given(N, N + 26, NAMES[N:])
    known = links(folder / "originals", folder / "p.html")
    write_report(model, folder / "report.html", "my model", folder / "originals")
    write_report(numbers, folder / "numbers.html")
    write_report(labels, folder / "labels.html")
    write_page(render_suspects(model, model.suspects(N), "m", known), folder / "suspects.html")
    found = explain(model, new.select([0, 1]), 4)
    write_page(render_explanations(model, new.select([0, 1]), found, None, known), folder / "explain.html")
    write_page(render_evaluation(model, evaluate(model, new)), folder / "evaluation.html")
    marks = np.array([[name in one for name in labels.classes_.tolist()] for one in several[N:]], int)
    judged = evaluate(labels, new.relabelled(marks).select(slice(0, FEW)))
    write_page(render_evaluation(labels, judged), folder / "evaluated labels.html")
    chosen = select_source(folder / "originals", folder / "originals", small(), n_jobs=1, budget=12).manifest
    write_selection_page(folder / "selection.html", chosen, folder / "originals", n_jobs=1)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    context = browser.new_context(**options)
    context.set_default_timeout(30_000)
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(file.as_uri())
    assert said == [file.as_uri()], "nothing is loaded, and nothing goes wrong"
    return page, said


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_it(browser: Any, site: Path, name: str) -> None:
    page, _ = opened(browser, site / f"{name}.html")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    found = {}
    for width in (1400, 390):
        for scheme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=scheme)
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
            assert dark == (scheme == "dark")
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), f"wider than {width} px"
            if (width, scheme) in ((1400, "light"), (390, "dark")):  # colours do not depend on the width
                found[width, scheme] = faults(page)
    page.context.close()
    assert {where: what for where, what in found.items() if what} == {}


def shown(page: Any) -> list[str]:
    """The names in the list, as a person goes through it."""
    return page.eval_on_selector_all(".pictures li .file.copied", "all => all.map(one => one.textContent)")


def test_pictures_are_chosen_and_sorted_by_class(browser: Any, site: Path) -> None:
    page, said = opened(browser, site / "report.html")
    before = shown(page)
    assert sorted(before) == sorted(IDS)
    assert page.is_visible("text=4 more")
    page.select_option("select[name=label]", "bee <i>")
    wanted = [name for name in before if name.startswith("bee <i>/")]
    assert shown(page) == wanted
    assert f"{len(wanted)} of {N}" in page.inner_text(".choose")
    assert page.is_visible("details.more") == (len(wanted) > 24)
    page.check("input[name=other]")
    assert set(shown(page)) < set(wanted)
    page.uncheck("input[name=other]")
    page.select_option("select[name=order]", "reversed")
    assert shown(page) == wanted[::-1]
    page.select_option("select[name=label]", "")
    page.select_option("select[name=order]", "label")
    assert shown(page) == sorted(before, key=lambda name: (name.split("/")[0], before.index(name)))
    page.select_option("select[name=order]", "given")
    assert shown(page) == before
    assert len(said) == 1
    page.context.close()


def test_a_picture_is_enlarged_by_key_and_leads_to_its_file(browser: Any, site: Path) -> None:
    page, _ = opened(browser, site / "report.html")
    name = shown(page)[0]
    page.focus(".pictures .picture")
    page.keyboard.press("Enter")
    assert page.is_visible("dialog.larger img")
    assert name in page.inner_text("dialog.larger")
    address = page.evaluate("document.querySelector('dialog.larger a').href")
    assert Path(page.evaluate("decodeURIComponent(new URL(document.querySelector('dialog a').href).pathname)")) == (
        site / "originals" / name
    )
    page.keyboard.press("Escape")
    assert not page.is_visible("dialog.larger")
    assert page.evaluate("document.activeElement.className") == "picture", "where one was before"
    page.click("details.more summary")
    page.click("details.more .picture >> nth=2")
    assert page.is_visible("dialog.larger .cell")
    page.click("dialog.larger button")
    assert not page.is_visible("dialog.larger")
    assert page.goto(address).ok or page.url == address
    page.context.close()


def test_full_names_are_copied(browser: Any, site: Path) -> None:
    page, _ = opened(browser, site / "suspects.html", permissions=["clipboard-read", "clipboard-write"])
    name = shown(page)[3]
    page.click(".pictures li:nth-child(4) > figure .copy")
    page.wait_for_selector("text=copied")
    assert page.evaluate("navigator.clipboard.readText()") == name
    page.click(".pictures li:nth-child(4) .mend summary")
    page.click(".pictures li:nth-child(4) .mend .copy")
    page.wait_for_timeout(50)
    assert page.evaluate("navigator.clipboard.readText()").startswith("tangentune relabel m ")
    page.context.close()


def test_without_script_the_page_is_whole(browser: Any, site: Path) -> None:
    page, _ = opened(browser, site / "report.html", java_script_enabled=False)
    assert not page.is_visible(".choose")
    assert page.locator("button").count() == 0
    page.click("details.more summary")
    assert page.locator(".pictures .picture:visible").count() == N
    page.context.close()
