"""The real server in a real browser: keys, mouse, a phone's width, dark mode, and what assistive technology finds.

Needs Chromium.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_cases import NEEDED, chromium, faults
from page_cases import CLASSES, IDS, NAMES, NEW, X, figures_of, fresh, png, save_model

from tangentune import TangentClassifier
from tangentune.workbench.server import prepare

pytestmark = [pytest.mark.usefixtures("loadable"), NEEDED]


class Visit:
    """One page in the browser, and whatever its console said."""

    def __init__(self, browser: Any, address: str, **options: Any):
        self.context = browser.new_context(bypass_csp=False, **options)
        self.context.set_default_timeout(30_000)
        self.page, self.said = self.context.new_page(), list[str]()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#figures")
        self.page.wait_for_load_state(
            "networkidle"
        )  # the first document only leads on to this one, its style and script

    def figure(self, key: str) -> str:
        return self.page.inner_text(f"#figure-{key} b")

    @property
    def number(self) -> int:
        return int(self.page.input_value("#state [name=number]"))

    def settled(self, version: int) -> None:
        self.page.wait_for_selector(f'body:not(.busy) #figures[data-version="{version}"]')
        self.page.wait_for_load_state("networkidle")

    def press(self, key: str, version: int) -> None:
        self.page.keyboard.press(key)
        self.settled(version)

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f'#tab-{name}[aria-selected="true"]')
        self.page.wait_for_load_state("networkidle")

    def wide(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def faults(self) -> list[str]:
        return faults(self.page)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def address(kept: Path, tmp_path: Path) -> Iterator[str]:
    serving = prepare(fresh(kept, tmp_path))
    stop = serving.start()
    yield serving.address
    stop()


def dropped(page: Any, content: bytes) -> Any:
    """What a browser hands over when a file is dropped on it."""
    make = """bytes => {
        const found = new DataTransfer();
        found.items.add(new File([new Uint8Array(bytes)], "new.png"));
        return found;
    }"""
    return page.evaluate_handle(make, list(content))


def agrees(visit: Visit, x: np.ndarray, names: np.ndarray, ids: list[str]) -> None:
    for key, value in figures_of(x, names, ids).items():
        assert visit.figure(key) == value


def test_a_session_by_keyboard_alone(browser: Any, address: str, tmp_path: Path) -> None:
    visit = Visit(browser, address, viewport={"width": 1400, "height": 900})
    page, names, first = visit.page, NAMES.copy(), visit.number
    agrees(visit, X, NAMES, IDS)
    preview = page.inner_text("#do-suggestion:has(small:not(:empty)) small")
    names[first] = json.loads(page.get_attribute("#do-suggestion", "hx-vals") or "")["to"]
    visit.press("Enter", 1)
    agrees(visit, X, names, IDS)
    assert preview.endswith(f"→ {visit.figure('accuracy')}")
    second = visit.number
    assert second != first
    assert page.evaluate("document.activeElement.id") == f"tile-{second}"
    visit.press("x", 2)
    left = np.arange(len(X)) != second
    agrees(visit, X[left], names[left], [one for i, one in enumerate(IDS) if left[i]])
    visit.press("u", 3)
    agrees(visit, X, names, IDS)
    assert visit.number == second, "what was undone is looked at again"
    visit.press("k", 4)
    assert not page.query_selector(f"#tile-{second}")
    third = visit.number
    page.keyboard.press("s")
    page.wait_for_selector(f"#tile-{third}", state="detached")
    fourth = visit.number
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f'[data-tile][aria-current="true"]:not(#tile-{fourth})')
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f'#tile-{fourth}[aria-current="true"]')
    key = next(i for i, name in enumerate(CLASSES, 1) if name != names[fourth])
    page.wait_for_selector(f"#do-class-{key} small:not(:empty)")
    names[fourth] = CLASSES[key - 1]
    visit.press(str(key), 5)
    agrees(visit, X, names, IDS)
    page.keyboard.press("Control+s")  # no key of the page
    page.focus("#by-text")
    page.keyboard.type("xk1")  # letters in a field are letters
    page.wait_for_selector('#state [name=text][value="xk1"]', state="attached")
    assert page.get_attribute("#figures", "data-version") == "5"
    assert page.get_attribute("#figures", "data-unsaved") == "yes"
    page.focus("#save")
    page.keyboard.press("Enter")
    page.wait_for_selector('#figures[data-unsaved="no"]')
    assert "Saved" in page.inner_text("#notice")
    assert TangentClassifier.from_pretrained(tmp_path / "m").targets_.tolist() == names.tolist()
    assert visit.said == []
    visit.context.close()


def test_many_at_once_by_mouse_and_leaving_warns(browser: Any, address: str) -> None:
    visit = Visit(browser, address, viewport={"width": 1400, "height": 1000})
    page = visit.page
    visit.tab("map")
    box = page.locator("#map").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    for across, down in ((0.45, 0.0), (0.45, 1.0), (0.0, 1.0)):
        page.mouse.move(box["x"] + 2 + across * (box["width"] - 4), box["y"] + 2 + down * (box["height"] - 4), steps=3)
    page.mouse.up()
    page.wait_for_selector("#bulk-forget small:not(:empty)")
    chosen = [int(one) for one in page.input_value("#bulk [name=numbers]").split(",")]
    assert 1 < len(chosen) < len(X)
    preview = page.inner_text("#bulk-relabel small")
    label = page.input_value("#bulk-label")
    page.click("#bulk-relabel")
    visit.settled(1)
    names = NAMES.copy()
    names[chosen] = label
    agrees(visit, X, names, IDS)
    assert preview.endswith(f"→ {visit.figure('accuracy')}")
    page.focus("#map")  # and by keyboard
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_selector("#bulk >> text=1 chosen")
    page.click("#undo")
    visit.settled(2)
    page.click("#redo")
    visit.settled(3)
    agrees(visit, X, names, IDS)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == ["beforeunload"]
    agrees(visit, X, names, IDS)
    assert visit.said == []
    visit.context.close()


def test_another_tab_is_told_that_it_is_behind(browser: Any, address: str) -> None:
    one = Visit(browser, address)
    other = one.context.new_page()
    other.goto(address.partition("?")[0])
    other.wait_for_selector("#do-forget small:not(:empty)")
    one.press("x", 1)
    other.keyboard.press("x")
    other.wait_for_selector("#notice.wrong")
    assert "changed since" in other.inner_text("#notice")
    other.wait_for_selector('#figures[data-version="1"]')
    one.context.close()


class Notebook(BaseHTTPRequestHandler):
    """Another site of this machine, which shows the page in a frame."""

    shown = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f'<link rel="icon" href="data:,"><iframe src="{self.shown}" height="800"></iframe>'.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_the_page_works_in_a_frame_of_another_site(browser: Any, kept: Path, tmp_path: Path) -> None:
    """As a notebook shows it, without a cookie: its secret is in every address."""
    serving = prepare(fresh(kept, tmp_path), framed=True)
    stop, Notebook.shown = serving.start(), serving.address
    context, said = browser.new_context(), list[str]()
    with HTTPServer(("127.0.0.1", 0), Notebook) as notebook:
        threading.Thread(target=notebook.serve_forever, daemon=True).start()
        outer = context.new_page()
        outer.on("console", lambda message: said.append(message.text))
        outer.goto(f"http://localhost:{notebook.server_port}/")
        page = outer.frame_locator("iframe")
        page.locator("#do-forget small:not(:empty)").wait_for(timeout=10_000)
        page.locator("body").press("x")
        page.locator('body:not(.busy) #figures[data-version="1"]').wait_for()
        page.locator("#tab-map").click()
        page.locator("#map").wait_for()
        notebook.shutdown()
    assert context.cookies() == []
    assert said == []
    context.close()
    stop()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_every_view_at_every_width(browser: Any, address: str, tmp_path: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, address, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = visit.page
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 25)"
    assert dark == (scheme == "dark")
    (tmp_path / "new.png").write_bytes(png(NEW[0]))
    faults = {"suspects": visit.faults()}
    for tab in ("map", "confusion", "groups", "new"):
        visit.tab(tab)
        if tab == "confusion":
            page.click("#cell-0-0")
            page.wait_for_selector("[data-pick]")
        if tab == "groups":
            page.fill("#pattern", "^([^/]+)/")
            page.click("#panel button[type=submit]")
            page.wait_for_selector("#panel td")
        if tab == "new":
            if width > 1000:
                page.dispatch_event("#new", "drop", {"dataTransfer": dropped(page, png(NEW[0]))})
            else:
                page.set_input_files("#files", str(tmp_path / "new.png"))
            page.wait_for_selector(".card")
            page.click(".card form .strong")
            visit.settled(1)
            assert visit.figure("n") == str(len(X) + 1)
        assert not visit.wide(), f"{tab} is wider than {width} px"
        faults[tab] = visit.faults()
    assert {tab: found for tab, found in faults.items() if found} == {}
    assert visit.said == []
    visit.context.close()
