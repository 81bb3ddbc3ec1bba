"""The page, asked as a browser asks it: after each edit its figures are those of a fit to the changed pictures."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from page_cases import (
    CLASSES,
    HEADERS,
    IDS,
    NAMES,
    NEW,
    TestClient,
    X,
    figures_of,
    fresh,
    opened,
    png,
    post,
    save_model,
    shown,
    state,
    tiles,
)

from tangentune import TangentClassifier
from tangentune.workbench import app
from tangentune.workbench.desk import Desk
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session
from tangentune.workbench.view import View
from tangentune.workbench.views import following

pytestmark = pytest.mark.usefixtures("loadable")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def page(kept: Path, tmp_path: Path) -> Iterator[tuple[TestClient, Desk]]:
    with opened(fresh(kept, tmp_path)) as both:
        yield both


def agrees(answer: str, x: np.ndarray, names: np.ndarray, ids: list[str]) -> None:
    for key, value in figures_of(x, names, ids).items():
        assert shown(answer, key) == value


def test_figures_follow_every_edit_as_if_fitted_again(page: tuple[TestClient, Desk]) -> None:
    client, _ = page
    agrees(client.get("/").text, X, NAMES, IDS)
    names, rest = NAMES.copy(), np.arange(len(X)) != 3
    names[5] = CLASSES[2]
    answer = post(client, "edit", kind="relabel", numbers=5, to=CLASSES[2])
    agrees(answer, X, names, IDS)
    assert state(answer)["version"] == "1"
    answer = post(client, "edit", version=1, kind="forget", numbers=3)
    agrees(answer, X[rest], names[rest], [name for i, name in enumerate(IDS) if i != 3])
    answer = post(client, "edit", version=2, kind="keep", numbers=7)
    assert 7 not in tiles(answer)
    assert state(answer)["version"] == "3"
    agrees(post(client, "undo", version=3), X[rest], names[rest], [name for i, name in enumerate(IDS) if i != 3])
    answer = post(client, "undo", version=4)
    agrees(answer, X, names, IDS)
    assert state(answer)["number"] == "3", "what was undone is looked at again"
    agrees(post(client, "undo", version=5), X, NAMES, IDS)
    agrees(post(client, "redo", version=6), X, names, IDS)


def test_a_stale_or_impossible_edit_changes_nothing(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    post(client, "edit", kind="forget", numbers=1)
    assert "changed since" in post(client, "edit", 409, version=0, kind="forget", numbers=2)
    for address in ("undo", "save"):
        post(client, address, 409, version=0)
    for fields in (
        {"kind": "forget", "numbers": 99},
        {"kind": "forget", "numbers": ""},
        {"kind": "forget", "numbers": "1;2"},
        {"kind": "burn", "numbers": 2},
        {"kind": "relabel", "numbers": 2},
        {"kind": "relabel", "numbers": 2, "to": "unicorn"},
    ):
        answer = post(client, "edit", 422, version=1, **fields)
        assert "\n" not in answer
        assert len(answer) > 20
    post(client, "redo", 422, version=1)
    post(client, "edit", 422, version=1, kind="forget", numbers=2, tab="cellar")
    assert desk.session.version == 1
    assert len(desk.session.numbers) == len(X) - 1


def test_what_an_edit_would_do_is_said_before(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    first = tiles(client.get("/").text)[0]
    choices = html.unescape(client.get(f"/choices/{first}?suggested={CLASSES[0]}").text)
    assert desk.session.version == 0
    before = shown(client.get("/").text, "accuracy").removesuffix(" %")
    after = shown(post(client, "edit", kind="forget", numbers=first), "accuracy")
    assert f"Forget the picture</span><small>{before} → {after}</small>" in choices
    assert client.get("/choices/99").status_code == 422


def test_previews_give_way_to_an_edit(page: tuple[TestClient, Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    client, desk = page
    tried: list[Edit] = []

    def overtaken(session: Session, edit: Edit) -> str:
        tried.append(edit)
        session.take(Edit("forget", (3,)))
        return ""

    monkeypatch.setattr(app, "previewed", overtaken)
    assert client.get("/choices/5").status_code == 204
    assert len(tried) == 1
    assert desk.session.unsaved == 1


def test_the_list_moves_on_and_skipping_is_no_edit(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    listed = tiles(client.get("/").text)
    answer = post(client, "skip", number=listed[0])
    assert listed[0] not in tiles(answer)
    assert state(answer) == state(client.get("/").text) | {"number": str(listed[1])}
    answer = post(client, "edit", kind="keep", numbers=listed[1])
    assert state(answer)["number"] == str(listed[2])
    assert listed[0] in tiles(post(client, "unskip"))
    assert desk.session.unsaved == 1
    assert following([4, 5, 6, 7], [5], [4, 7, 6]) == 6
    assert following([4, 5, 6], [6], [4, 5]) == 5
    assert following([4], [4], []) == -1


def test_filters_hold_for_list_and_map(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    answer = client.get("/view", params={"label": CLASSES[1], "set_text": "DAY1/"}).text
    numbers = [i for i in range(len(X)) if NAMES[i] == CLASSES[1] and i % 4 == 1]
    assert sorted(tiles(answer)) == numbers
    assert state(answer)["text"] == "DAY1/"
    points = client.get("/layout.json", params={"label": CLASSES[1], "text": "day1/"}).json()["points"]
    assert sorted(one["number"] for one in points if not one["out"]) == numbers
    called = client.get("/layout.json", params={"suggestion": CLASSES[0]}).json()["points"]
    assert sum(not one["out"] for one in called) == desk.session.confusion()[:, 0].sum()
    assert View.of({"number": "3", "label": "gone"}).number == 3
    assert client.get("/view", params={"label": "gone", "number": 99}).status_code == 200
    assert client.get("/view", params={"number": "x"}).status_code == 422


def test_a_cell_of_the_confusion_is_relabelled_together(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    table = desk.session.confusion()
    i, j = np.argwhere((table > 0) & ~np.eye(len(table), dtype=bool))[0]
    numbers = desk.session.members(str(CLASSES[i]), str(CLASSES[j]))
    answer = client.get(f"/view?tab=confusion&cell={i}-{j}").text
    assert tiles(answer) == numbers
    listed = ",".join(map(str, numbers))
    bulk = html.unescape(post(client, "bulk", numbers=listed, bulk_label=CLASSES[j]))
    names = NAMES.copy()
    names[numbers] = CLASSES[j]
    wanted = figures_of(X, names, IDS)
    assert f"→ {wanted['accuracy']}</small>" in bulk
    assert desk.session.version == 0
    agrees(post(client, "edit", tab="confusion", kind="relabel", numbers=listed, to=CLASSES[j]), X, names, IDS)
    everyone = ",".join(map(str, range(len(X))))
    assert "Forget all<small>" in post(client, "bulk", numbers=everyone), "an impossible edit says so instead"
    assert "0 chosen" not in post(client, "bulk", numbers="")


def test_groups_are_left_out_whole(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    answer = client.get("/view", params={"tab": "groups", "set_pattern": r"^([^/]+)/"}).text
    for one in desk.session.groups(r"^([^/]+)/"):
        assert f"<tr><td>{one.name}</td>" in answer
        assert f"{100 * one.whole.accuracy:.1f} %" in answer
    assert "is no regular expression" in client.get("/view", params={"tab": "groups", "set_pattern": "("}).text
    headers = HEADERS | {"X-Name": "cameras.csv", "X-Column": "camera"}
    cells = ['"' + name.replace('"', '""') + '"' for name in IDS]
    lines = [f"{name},{'north' if i < 9 else 'south'}" for i, name in enumerate(cells)]
    table = "\n".join(["id,camera", *lines])
    assert client.post("/grouped", content=table, headers=headers).json() == {"pictures": len(X)}
    answer = client.get("/view", params={"tab": "groups"}).text
    assert '<td>north</td><td class="num">9</td>' in answer
    assert client.post("/grouped", content=b"\xff", headers=headers).status_code == 422
    assert "camera" in client.post("/grouped", content="id,day\na,1\n", headers=headers).text


def test_new_pictures_wait_until_they_are_added(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    headers = {**client.headers, "Origin": "http://127.0.0.1:8000", "X-Workbench": "written"}
    for i, name in enumerate(["..%2F..%2Fa%3Cb%3E.png", "b.png", "c.png"]):
        answer = client.post("/new", content=png(NEW[i]), headers=headers | {"X-Name": name})
        assert answer.json() == {"number": i}
    assert client.post("/new", content=b"GIF89a", headers=headers | {"X-Name": "x.gif"}).text.startswith(
        "x.gif cannot be used: "
    )
    card = client.get("/view?tab=new").text
    assert "a&lt;b&gt;.png" in card
    assert "Familiar" in card or "usual" in card or "Un" in card
    assert client.get("/new/0.png").content == png(NEW[0])
    assert desk.session.version == 0
    assert "new class" in post(client, "new/0/add", 422, tab="new", to="unicorn")
    post(client, "new/0/add", 422, tab="new", to=" ")
    answer = post(client, "new/0/add", tab="new", to=CLASSES[1])
    names = np.append(NAMES, CLASSES[1])
    agrees(answer, np.concatenate([X, NEW[:1]]), names, [*IDS, "a<b>.png"])
    assert 'id="new-0"' not in answer
    assert 'id="new-0"' in post(client, "undo", tab="new", version=1), "what is taken back waits again"
    post(client, "new/2/add", tab="new", version=2, to=CLASSES[1])
    assert 'id="new-0"' in post(client, "undo", tab="new", version=3), "another one had its number meanwhile"
    post(client, "new/1/add", tab="new", version=4, to="elk", new_class="yes")
    assert "elk" in desk.session.classes
    assert 'id="new-2"' in client.get("/view?tab=new").text
    assert 'id="new-2"' not in post(client, "new/2/drop", tab="new")
    assert not [one for one in Path(desk.room.name).iterdir() if one.stem == "2"]


def test_rows_are_kept_behind_the_page(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    assert 'id="keep-rows"' in client.get("/view?tab=new").text
    assert client.get("/rows/events").text == "event: end\ndata: \n\n"
    post(client, "rows", tab="new")
    events = client.get("/rows/events").text
    assert events.endswith("event: end\ndata: \n\n")
    assert desk.session.rows_kept
    assert (desk.rows.done, desk.rows.all) == (len(X), len(X))
    assert 'id="keep-rows"' not in client.get("/view?tab=new").text
    agrees(post(client, "edit", kind="forget", numbers=31), X[:31], NAMES[:31], IDS[:31])


def test_what_to_label_next(kept: Path, tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for i, pixels in enumerate(NEW):
        (pool / f"<b>{i}.png").write_bytes(png(pixels))
    (pool / "same.png").write_bytes(png(X[0]))
    (pool / "torn.png").write_bytes(png(X[1])[:60])
    with opened(fresh(kept, tmp_path), unlabelled=pool) as (client, desk):
        assert 'id="suggest"' in client.get("/view?tab=next").text
        answer = post(client, "suggest", tab="next")
        assert "Chosen of 3." in answer, "the model stands on the fourth"
        assert "<b>0.png" not in answer
        assert "1 file cannot be read and is left out; the first: torn.png" in answer
        assert desk.unlabelled is not None
        first, second, third = (one.position for one in desk.unlabelled.open([]))
        assert f'id="pool-{first}"' in answer
        assert f'id="pool-{third}"' in client.get(f"/view?tab=next&pool={third}").text
        assert client.get(f"/unlabelled/{first}.png").content == png(NEW[first])
        post(client, f"unlabelled/{first}/add", 422, tab="next", to="unicorn")
        post(client, f"unlabelled/{first}/add", 409, tab="next", to=CLASSES[0], version=7)
        answer = post(client, f"unlabelled/{first}/add", tab="next", to=CLASSES[0])
        names = np.append(NAMES, CLASSES[0])
        agrees(answer, np.concatenate([X, NEW[first : first + 1]]), names, [*IDS, f"<b>{first}.png"])
        assert f'id="pool-{second}"' in answer
        assert f'id="pool-{first}"' in post(client, "undo", tab="next", version=1)
        assert f'id="pool-{second}"' in post(client, "redo", tab="next", version=2)
        assert f'id="pool-{third}"' in post(client, f"unlabelled/{second}/skip", tab="next", version=1)
        assert "batch is done" in post(client, f"unlabelled/{third}/skip", tab="next", version=1)
        assert client.get("/unlabelled/99.png").status_code == 422
    with opened(tmp_path / "m") as (client, _):
        assert client.get("/view?tab=next").status_code == 200
        assert 'id="tab-next"' not in client.get("/").text
        assert "--unlabelled" in post(client, "suggest", 422)


def test_save_writes_and_an_unsaved_edit_outlives_a_crash(kept: Path, tmp_path: Path) -> None:
    model, names = fresh(kept, tmp_path), NAMES.copy()
    before = (model / "config.json").read_bytes()
    names[5] = CLASSES[2]
    with opened(model) as (client, _):
        assert 'data-unsaved="yes"' in post(client, "edit", kind="relabel", numbers=5, to=CLASSES[2])
        assert (model / "config.json").read_bytes() == before
        answer = post(client, "save", version=1)
        assert "1 edit more" in answer
        assert 'data-unsaved="no"' in answer
        assert TangentClassifier.from_pretrained(model).targets_.tolist() == names.tolist()
        post(client, "edit", version=1, kind="forget", numbers=3)
        post(client, "edit", version=2, kind="forget", numbers=4)  # these two are in the journal only
    left = ~np.isin(np.arange(len(X)), (3, 4))
    with opened(model) as (client, _):
        first = client.get("/").text
        agrees(first, X, names, IDS)
        assert "2 edits of " in first
        assert "were not saved" in first
        assert 'id="choices"' not in first, "nothing is edited before that is settled"
        assert "unsaved" in post(client, "edit", 422, kind="forget", numbers=7)
        agrees(post(client, "recover", take="yes"), X[left], names[left], [one for i, one in enumerate(IDS) if left[i]])
    with opened(model) as (client, _):
        agrees(post(client, "recover", take="no"), X, names, IDS)
    with opened(model) as (client, _):
        assert "not saved" not in client.get("/").text


def test_exports(page: tuple[TestClient, Desk]) -> None:
    client, desk = page
    post(client, "edit", kind="relabel", numbers=5, to=CLASSES[2], why=" out of focus ")
    answer = client.get("/corrections.csv")
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == len(X)
    assert [row["original"] for row in rows] == NAMES.tolist()
    assert {row["current"] for row in rows if row["id"] == IDS[5]} == {CLASSES[2]}
    (why,) = [row["why"] for row in rows if row["id"] == IDS[5]]
    assert why.startswith("out of focus")
    lines = [json.loads(line) for line in client.get("/log.jsonl").text.splitlines()]
    assert lines == desk.session.estimator.edits_


def test_foreign_names_are_text_everywhere(page: tuple[TestClient, Desk]) -> None:
    client, _ = page
    for tab in ("suspects", "map", "confusion", "groups", "new"):
        answer = client.get(
            "/", params={"tab": tab, "cell": "1-1", "number": 1, "set_text": "<i>'\"", "set_pattern": "day."}
        ).text
        assert "<img src=x" not in answer
        assert "b<i>e" not in answer
        assert "<i>'" not in answer
    assert "b&lt;i&gt;e&#39;e&#34;" in answer
