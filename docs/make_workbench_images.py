"""The pictures of the workbench in README and docs/workbench.md, and of a report: real pages on real plankton.

    python docs/make_workbench_images.py

Needs planktonclass, playwright and Chromium; half a minute.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import warnings
from importlib.resources import files
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tangentune import TangentClassifier, write_report
from tangentune.workbench.server import prepare

IMAGES = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
COLOURS = 256  # of a picture: enough for grey plankton and a few colours


def keep(page: Page, name: str) -> None:
    """What the page shows, small enough for a repository."""
    page.wait_for_load_state("networkidle")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
    print(name, image.size, f"{(IMAGES / name).stat().st_size / 1000:.0f} kB")


def edits(page: Page, keys: str) -> None:
    """Press keys, one after the other, each when the page shows what the one before did."""
    for version, key in enumerate(keys.split(), 1):
        page.keyboard.press(key)
        page.wait_for_selector(f'body:not(.busy) #figures[data-version="{version}"]')


def show_report(browser: Browser, model: TangentClassifier, room: Path) -> None:
    """The upper part of a report."""
    page = browser.new_context(viewport={"width": 1130, "height": 1180}).new_page()
    page.goto(write_report(model, room / "report.html").as_uri())
    keep(page, "report.png")


def main() -> None:
    """Fit, serve, edit, and look."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no Chromium here")
    pictures = str(files("planktonclass") / "resources" / "demo-images")
    with tempfile.TemporaryDirectory() as room:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a duplicate in the set
            model = TangentClassifier("mobilenet_v2", input_size=64, outer_steps=0, augment=None).fit(pictures)
        model.save_pretrained(Path(room) / "plankton")
        serving = prepare(Path(room) / "plankton", originals=pictures)
        stop = serving.start()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
            show_report(browser, model, Path(room))
            context = browser.new_context(viewport={"width": 1400, "height": 850})
            page = context.new_page()
            page.goto(serving.address)
            page.wait_for_selector("#do-forget small:not(:empty)")
            edits(page, "Enter k Enter")
            page.wait_for_selector("#do-forget small:not(:empty)")
            keep(page, "workbench.png")
            page.set_viewport_size({"width": 1400, "height": 960})
            page.click("#tab-map")
            page.wait_for_load_state("networkidle")
            box = page.locator("#map").bounding_box()
            assert box is not None
            corners = [(0.30, 0.66), (0.56, 0.62), (0.62, 0.86), (0.40, 0.98), (0.27, 0.9)]
            where = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in corners]
            page.mouse.move(*where[0])
            page.mouse.down()
            for corner in where[1:]:
                page.mouse.move(*corner, steps=6)
            page.mouse.up()
            page.wait_for_selector("#bulk-forget small:not(:empty)")
            page.mouse.move(2, 2)
            keep(page, "workbench_map.png")
            phone = browser.new_context(
                viewport={"width": 390, "height": 760}, color_scheme="dark", device_scale_factor=2,
                storage_state=context.storage_state(),
            ).new_page()  # fmt: skip
            phone.goto(serving.address)
            phone.wait_for_selector("#do-forget small:not(:empty)")
            phone.click("[data-tile] >> nth=1")
            phone.wait_for_selector('[data-tile][aria-current="true"] >> nth=0')
            phone.wait_for_selector("#do-forget small:not(:empty)")
            keep(phone, "workbench_phone.png")
            browser.close()
        stop()


if __name__ == "__main__":
    main()
