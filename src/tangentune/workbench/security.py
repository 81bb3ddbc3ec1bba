"""Who may ask the workbench: the gate that every request passes before anything else sees it.

The page changes a model on somebody's disk and shows pictures that may be private. Any web page in the same browser can
send requests to 127.0.0.1, and a name of its own can be made to point there, so being local is no proof of anything.
What is: the exact Host (no foreign name), a secret that the terminal gave to the browser once, and for whatever changes
something the page's own Origin and a second secret that only its own script can read.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from dataclasses import dataclass, field
from typing import Any, final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = "127.0.0.1"
CSRF_HEADER = "X-Workbench"
MOST_BYTES = 256 << 20  # of one upload, which is one picture file
FRAMING = "http://localhost:* http://127.0.0.1:* vscode-webview:"  # pages that may show a notebook's frame
_EVERYWHERE = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}  # addresses that stand for all of the machine
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors {}"
)
_ONWARD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    '<title>tangentune</title><link rel="icon" href="/static/icon.svg"><p><a href="/">To the workbench</a></p></html>'
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@final
@dataclass(frozen=True)
class Gate:
    """What lets a request in: the exact names of the server, and its secrets.

    With `token_in_path` the token is the first part of every address instead of a cookie: for networks, and for frames
    in notebooks, whose cookies browsers withhold.
    """

    hosts: frozenset[str]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    token_in_path: bool = False
    framed: bool = False

    def opening(self, host: str) -> str:
        """The address that a person opens first."""
        return f"http://{host}/{self.token}/" if self.token_in_path else f"http://{host}/?token={self.token}"

    def cookie(self, host: str) -> str:
        """The cookie's name: cookies know no ports, and two servers must not take each other's."""
        port = host.rpartition(":")[2]
        return f"tangentune-{port if port.isdecimal() else 80}"


def host_names(address: str, port: int) -> frozenset[str]:
    """The exact Host headers of a server bound to an address; of one bound to all, those of the whole machine."""
    if address == LOCAL:
        names = {LOCAL, "localhost"}
    elif address in _EVERYWHERE:
        import psutil

        family = _EVERYWHERE[address]
        found = [one for card in psutil.net_if_addrs().values() for one in card if one.family == family]
        names = {one.address.partition("%")[0] for one in found} | {"localhost", socket.gethostname().lower()}
    else:
        names = {address.lower()}
    ended = "" if port == 80 else f":{port}"  # browsers leave the usual port out
    return frozenset(f"[{name}]{ended}" if ":" in name else f"{name}{ended}" for name in names)


@final
@dataclass(frozen=True)
class Guard:
    """Middleware around the whole page: refuses with a 4xx and one sentence, or lets through; adds the headers."""

    app: ASGIApp
    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI wants it; anything but HTTP, such as a web socket, is closed."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send, _POLICY.format(FRAMING if self.gate.framed else "'none'"))
        answer = self._stopped(scope)
        if answer is not None:
            await answer(scope, receive, send)
            return
        await self.app(scope, _bounded(receive), send)

    def _stopped(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further; the token's part of the address is taken off on the way."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.gate.hosts:
            return _refused(403, "This server does not answer under that name; open the address that it printed.")
        host = hosts[0].lower()
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refused(405, "The workbench knows GET and POST only.")
        if entered := self._entered(scope, host):
            return entered
        if not (self._by_path(scope) if self.gate.token_in_path else self._by_cookie(headers, host)):
            return _refused(401, "This page needs the address that `tangentune serve` printed, with its token.")
        if scope["method"] == "POST":
            return self._foreign(headers, host)
        return None

    def _by_path(self, scope: Scope) -> bool:
        first, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not slash or not _same(first, self.gate.token):
            return False
        scope["root_path"] = ""
        scope["path"] = f"/{rest}"
        scope["raw_path"] = scope["path"].encode()
        return True

    def _by_cookie(self, headers: Headers, host: str) -> bool:
        found = cookie_parser(headers.get("cookie", "")).get(self.gate.cookie(host))  # as browsers read them: others'
        return found is not None and _same(found, self.gate.session)  # cookies of this machine may be odd

    def _entered(self, scope: Scope, host: str) -> Response | None:
        """The opening address: its token becomes a cookie, and leaves the address.

        The page goes on by itself instead of being redirected: a strict cookie is withheld from a redirection that
        began on another site, such as a terminal that runs in the browser.
        """
        if self.gate.token_in_path or scope["path"] != "/" or scope["method"] != "GET":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        if len(given) != 1 or not _same(given[0], self.gate.token):
            return None
        answer = HTMLResponse(_ONWARD)
        answer.set_cookie(self.gate.cookie(host), self.gate.session, httponly=True, samesite="strict", path="/")
        return answer

    def _foreign(self, headers: Headers, host: str) -> Response | None:
        """Refusal of a change that does not come from the page itself."""
        if headers.getlist("origin") != [f"http://{host}"]:
            return _refused(403, "This change does not come from the workbench's own page.")
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return _refused(403, "This change comes from another site.")
        if not _same(headers.get(CSRF_HEADER, ""), self.gate.csrf):
            return _refused(403, "This page is from an earlier start of the server; load it again.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return _refused(413, _too_large())
        return None


def _bounded(receive: Receive) -> Receive:
    """A body that is refused where it goes on beyond what is allowed, whatever its header said."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > MOST_BYTES:
            raise HTTPException(413, _too_large())
        return message

    return counted


def _too_large() -> str:
    return f"This upload is larger than {MOST_BYTES >> 20} MiB."


def _with_headers(send: Send, policy: str) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, "Content-Security-Policy": policy}.items():
                headers[name] = value
        await send(message)

    return sent


def _same(given: str, secret: str) -> bool:
    """Compared in a time that tells nothing; whatever characters were sent."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


def _refused(status: int, sentence: str) -> Any:
    return PlainTextResponse(sentence, status)
