"""Only the person whom the terminal gave the address gets through the gate, and nothing foreign changes anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from page_cases import GATE, HEADERS, HOST, TestClient, opened, save_model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.websockets import WebSocketDisconnect

from tangentune.workbench import security
from tangentune.workbench.security import CSRF_HEADER, Gate, Guard, host_names


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.method} {request.url.path} {len(await request.body())}")


def visitor(gate: Gate = GATE, known: bool = False) -> TestClient:
    """A client at an app that answers whatever gets through."""
    app = Guard(Starlette(routes=[Route("/{rest:path}", _echo, methods=["GET", "POST", "PUT"])]), gate)
    client = TestClient(app, base_url=f"http://{HOST}")
    if known:
        client.cookies.set(gate.cookie(HOST), gate.session)
    return client


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address() -> None:
    client = visitor()
    assert client.get("/").status_code == 401
    for wrong in ("/?token=", "/?token=opem", "/?token=open&token=open", "/view?token=open", "/?token=%ff"):
        assert client.get(wrong).status_code == 401
    answer = client.get("/?token=open")
    assert answer.status_code == 200
    assert 'content="0;url=/"' in answer.text
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("tangentune-8000=kept;")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "open" not in cookie
    assert client.get("/view").text == "GET /view 0"
    odd = {"Cookie": 'a={"b": "c"}; tangentune-8000=kept; d'}  # of other servers of this machine
    assert visitor().get("/view", headers=odd).status_code == 200
    other = {"Cookie": f"{GATE.cookie(HOST)}=other"}
    assert visitor().get("/view", headers=other).status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1", "127.0.0.1:8001", "localhost.evil:8000", "127.0.0.1:8000.evil", ""]
)
def test_no_other_name_is_answered(host: str) -> None:
    client = visitor(known=True)
    assert client.get("/", headers={"Host": host}).status_code == 403
    assert client.get("/?token=open", headers={"Host": host}).status_code == 403
    assert client.get("/", headers={"Host": "LOCALHOST:8000"}).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Origin": "https://127.0.0.1:8000"},
        {"Origin": None},
        {CSRF_HEADER: "writtem"},
        {CSRF_HEADER: None},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_a_change_comes_from_the_page_itself(wrong: dict[str, str | None]) -> None:
    client = visitor(known=True)
    headers = {name: value for name, value in (HEADERS | wrong).items() if value is not None}
    assert client.post("/edit", headers=headers).status_code == 403
    assert client.post("/edit", headers=HEADERS | {"Sec-Fetch-Site": "same-origin"}).text == "POST /edit 0"
    assert visitor().post("/edit", headers=HEADERS).status_code == 401


def test_other_methods_and_sockets_are_refused() -> None:
    client = visitor(known=True)
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        answer = client.request(method, "/", headers=HEADERS)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass


def test_uploads_are_bounded_whatever_their_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MOST_BYTES", 1000)
    client = visitor(known=True)
    assert client.post("/new", content=b"x" * 1000, headers=HEADERS).text == "POST /new 1000"
    assert client.post("/new", content=b"x" * 1001, headers=HEADERS).status_code == 413
    chunks: Iterator[bytes] = iter([b"x" * 600, b"x" * 600])  # no length is sent
    assert client.post("/new", content=chunks, headers=HEADERS).status_code == 413
    assert client.post("/new", content=b"", headers=HEADERS | {"Content-Length": "-1"}).status_code == 413


def test_on_a_network_the_token_is_in_every_address() -> None:
    gate = replace(GATE, token_in_path=True)
    assert gate.opening(HOST) == f"http://{HOST}/open/"
    client = visitor(gate, known=True)
    for wrong in ("/", "/view", "/?token=open", "/open", "/opem/view", "//view"):
        assert client.get(wrong).status_code == 401
    assert client.get("/open/view").text == "GET /view 0"
    assert visitor(gate).post("/open/edit", headers=HEADERS).text == "POST /edit 0"
    assert visitor(gate).post("/open/edit").status_code == 403


def test_names_of_a_server() -> None:
    assert host_names("127.0.0.1", 8000) == {HOST, "localhost:8000"}
    assert host_names("127.0.0.1", 80) == {"127.0.0.1", "localhost"}
    assert host_names("Lab.Example", 8000) == {"lab.example:8000"}
    assert host_names("::1", 8000) == {"[::1]:8000"}
    assert {HOST, "localhost:8000"} <= host_names("0.0.0.0", 8000)


@pytest.mark.usefixtures("loadable")
def test_every_answer_forbids_foreign_and_inline_code(tmp_path: Path) -> None:
    with opened(save_model(tmp_path)) as (client, _):
        stranger = TestClient(client.app, base_url=f"http://{HOST}")
        answers = [client.get("/"), client.get("/static/page.js"), client.get("/nothing"), stranger.get("/")]
        assert [one.status_code for one in answers] == [200, 200, 404, 401]
        for one in answers:
            policy = one.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert one.headers["x-content-type-options"] == "nosniff"
            assert one.headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in one.headers
        for tab in ("suspects", "map", "confusion", "groups", "new"):
            page = client.get(f"/?tab={tab}&cell=0-0&pattern=day.&number=3").text
            assert re.findall(r"<script(?![^>]* src=\"static/)", page) == []
            assert re.findall(r"\s(?:style|on\w+)=[\"']", re.sub(r"alert\(\d+\)", "", page)) == []
            assert "http://" not in page.replace("http://www.w3.org", "")
