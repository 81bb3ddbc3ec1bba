"""Damaged conditions: one sentence on the page, and nothing lost. And what of other files a page can show."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from page_cases import CLASSES, IDS, X, fresh, opened, png, post, save_model
from PIL import Image

from tangentune.errors import InputError, PictureError, StoreError
from tangentune.estimators import model_directory
from tangentune.workbench.desk import Desk
from tangentune.workbench.originals import Originals, picture_size, read_original
from tangentune.workbench.tray import MOST, Tray, plain_name

pytestmark = pytest.mark.usefixtures("loadable")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("kept"))


def test_a_full_disk_at_save_loses_nothing(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(kept, tmp_path)
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(model) as (client, desk):
        post(client, "edit", kind="forget", numbers=3)
        with monkeypatch.context() as patched:
            patched.setattr(model_directory, "_check_space", full)
            answer = post(client, "save", 422, version=1)
        assert "the disk is full" in answer
        assert "nothing was changed" in answer
        assert {path.name: path.read_bytes() for path in model.iterdir()} == before
        assert desk.session.unsaved == 1
        assert desk.session.can_redo == 0
        assert "1 edit more" in post(client, "save", version=1)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_second_workbench_is_told(kept: Path, tmp_path: Path) -> None:
    model = fresh(kept, tmp_path)
    with opened(model), pytest.raises(StoreError, match="another workbench is open on"):
        Desk.open(model)
    Desk.open(model).close()


def test_a_model_without_pictures_says_so(tmp_path: Path) -> None:
    with opened(save_model(tmp_path, pictures=False)) as (client, _):
        first = client.get("/").text
        assert 'aria-label="What is missing"' in first
        assert 'id="choices"' not in first
        assert client.get("/picture/3.png").status_code == 404
        assert len(post(client, "edit", 422, kind="forget", numbers=3)) > 30


def test_what_holds_no_classes_is_refused(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(InputError, match="TangentRegressor"):
        Desk.open(saved / "numbers")
    with pytest.raises(StoreError, match="no model"):
        Desk.open(tmp_path / "nothing")
    with pytest.raises(InputError, match="no folder"):
        Desk.open(saved / "classes", tmp_path / "nothing")


def test_originals_are_shown_while_they_are_there(kept: Path, tmp_path: Path) -> None:
    large = np.repeat(np.repeat(X[1], 40, 1), 40, 2)
    file = tmp_path / "originals" / IDS[1]
    file.parent.mkdir(parents=True)
    file.write_bytes(png(large))
    with opened(fresh(kept, tmp_path), tmp_path / "originals") as (client, _):
        assert "320 × 320 pixels" in client.get("/?number=1").text
        answer = client.get("/original/1")
        assert (answer.content, answer.headers["content-type"]) == (png(large), "image/png")
        stored = client.get("/picture/1.png")
        assert (np.asarray(Image.open(io.BytesIO(stored.content))) == X[1].transpose(1, 2, 0)).all()
        file.write_bytes(b"no picture any more")
        assert "is not a picture" in client.get("/original/1").text
        file.unlink()
        assert client.get("/original/1").status_code == 404
        told = client.get("/?number=1").text
        assert "8 × 8 pixels" in told
        assert "not in its folder any more" in told
        assert client.get("/original/99").status_code == 404
        assert client.get("/picture/99.png").status_code == 404


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(png(X[0]))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "own.png").write_bytes(png(X[0]))
    originals = Originals(tmp_path / "in")
    assert originals.path("own.png") == tmp_path / "in" / "own.png"
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", ".", "a\0b", "x" * 5000, "none.png"):
        assert originals.path(name) is None


def test_files_that_browsers_do_not_draw_are_converted(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(X[2].transpose(1, 2, 0)).save(file)
    shown = read_original(file)
    assert shown.kind == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(shown.content))) == X[2].transpose(1, 2, 0)).all()
    assert picture_size(file) == (8, 8)
    page = tmp_path / "b.png"
    page.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    assert picture_size(page) is None
    for path in (page, tmp_path, tmp_path / "none.png"):
        with pytest.raises(PictureError, match="cannot be shown"):
            read_original(path)


def test_the_tray_has_bounds(tmp_path: Path, kept: Path) -> None:
    with opened(fresh(kept, tmp_path)) as (_, desk):
        tray: Tray = desk.tray
        for i in range(MOST):
            tray.put(f"{i}.png", png(X[0]))
        with pytest.raises(InputError, match="200 new pictures"):
            tray.put("more.png", png(X[0]))
        tray.remove(0)
        tray.put("more.png", png(X[0]))
        with pytest.raises(InputError, match="not here"):
            tray.get(0)
        folder = Path(desk.room.name)
    assert not folder.exists()
    assert plain_name("C:\\photos\\..\\x.png") == "x.png"
    assert plain_name("/") == plain_name("..") == "picture"
    assert plain_name("a\u202eb.png") == r"a\u202eb.png"
    assert len(plain_name("x" * 500 + ".png")) == 120


def test_an_edit_that_leaves_too_little_is_refused(kept: Path, tmp_path: Path) -> None:
    with opened(fresh(kept, tmp_path)) as (client, desk):
        answer = post(client, "edit", 422, kind="relabel", numbers=",".join(map(str, range(len(X)))), to=CLASSES[0])
        assert "class" in answer
        assert desk.session.unsaved == 0
