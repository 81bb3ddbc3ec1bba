"""A small model with hostile names on the disk, its workbench, and a client that has come in by the front door."""

from __future__ import annotations

import html
import io
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cli_cases import small
from numpy.typing import NDArray
from PIL import Image
from small import FIXED, pictures

from tangentune import Pictures, TangentClassifier
from tangentune.workbench.app import create_app
from tangentune.workbench.desk import Desk
from tangentune.workbench.security import CSRF_HEADER, Gate

with warnings.catch_warnings():  # newer versions would rather have another client, which older ones do not know
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

HOST = "127.0.0.1:8000"
GATE = Gate(frozenset({HOST, "localhost:8000"}), token="open", csrf="written", session="kept")
HEADERS = {"Origin": f"http://{HOST}", CSRF_HEADER: "written"}
X, Y = pictures(32)
NEW, NEW_Y = pictures(3, seed=5)
CLASSES = np.array(["ant", "b<i>e'e\"", "cat  & co ", "dog"])
NAMES = CLASSES[Y]
IDS = [f"day{i % 4}/<img src=x onerror=alert({i})>'\".png" for i in range(32)]


def fitted(x: NDArray, names: NDArray, ids: list[str]) -> TangentClassifier:
    """A classifier whose feature map owes nothing to its pictures, so that another fit has the same one."""
    return TangentClassifier(small(), **FIXED).fit(Pictures(torch.from_numpy(x), names, ids))


def save_model(folder: Path, **options: Any) -> Path:
    fitted(X, NAMES, IDS).save_pretrained(folder / "m", **options)
    return folder / "m"


def fresh(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder / "m"))


@contextmanager
def opened(
    model: Path, originals: Path | None = None, unlabelled: Path | None = None
) -> Iterator[tuple[TestClient, Desk]]:
    """A page that a person has open, and what stands behind it."""
    desk = Desk.open(model, originals, unlabelled)
    try:
        with TestClient(create_app(desk, GATE), base_url=f"http://{HOST}") as client:
            assert client.get("/?token=open").status_code == 200
            yield client, desk
    finally:
        desk.close()


def post(client: TestClient, address: str, status: int = 200, **fields: Any) -> str:
    answer = client.post(address, data={"version": "0", **fields}, headers=HEADERS)
    assert answer.status_code == status, answer.text
    return answer.text


def shown(page: str, key: str) -> str:
    """A figure as the page shows it."""
    (found,) = re.findall(rf'id="figure-{key}".*?<b>(.*?)</b>', page, re.DOTALL)
    return html.unescape(found)


def state(page: str) -> dict[str, str]:
    """The fields that travel with every request."""
    return {
        name: html.unescape(value)
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="(.*?)">', page)
    }


def tiles(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'data-tile="(\d+)"', page)]


def png(pixels: NDArray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
    return stream.getvalue()


def figures_of(x: NDArray, names: NDArray, ids: list[str]) -> dict[str, str]:
    """What the page must show after edits that lead to these pictures: the figures of a fit to them."""
    model = fitted(x, names, ids)
    given, proba = np.searchsorted(model.classes_, names), model.loo_proba_
    accuracy = (proba.argmax(1) == given).mean()
    loss = -np.log(proba[np.arange(len(given)), given]).mean()
    return {"accuracy": f"{100 * accuracy:.1f} %", "log_loss": f"{loss:.3f}", "n": str(len(names))}
