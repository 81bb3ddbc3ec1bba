"""What the page answers: HTML from the templates, a file, a picture, or a mistake as one sentence of plain text."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from tangentune._version import __version__
from tangentune.errors import InputError, StaleError
from tangentune.reports.pages import environment_of
from tangentune.workbench.originals import read_original

_HERE = Path(__file__).parent
_NAME = 18  # characters of a file's name below a small picture; names differ at their ends
_SWAPPED = Markup(' hx-swap-oob="true"')


async def file_answer(path: Path | None) -> Response:
    """A picture file for the browser; 404 and why, where it cannot be shown."""
    if path is None:
        return PlainTextResponse("the file of this picture is not there", 404)
    try:
        found = await run_in_threadpool(read_original, path)
    except InputError as error:
        return PlainTextResponse(str(error), 404)
    return Response(found.content, media_type=found.kind)


def download(text: str, kind: str, name: str) -> Response:
    """A text to be kept as a file of that name."""
    content = text.encode("utf-8", "backslashreplace")
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


async def sentence(_: Request, error: Exception) -> Response:
    """A mistake as one sentence of plain text."""
    status = 409 if isinstance(error, StaleError) else 422
    if isinstance(error, MemoryError):
        text = "There is not enough memory for this; nothing was changed."
    elif isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = f"{'The disk is full' if full else error.strerror or error}; nothing was changed."
    else:
        text = str(error)
    return PlainTextResponse(text.encode("utf-8", "backslashreplace"), status)


def html(template: str, shown: dict[str, Any], swapped: bool = False) -> Response:
    """A template filled in; `swapped` of parts that take the place of those on the page."""
    found = _templates().get_template(template)
    page = found.render({"oob": _SWAPPED if swapped else "", "release": __version__, **shown})
    return HTMLResponse(page.encode("utf-8", "backslashreplace"))


@cache
def _templates() -> Environment:
    environment = environment_of(_HERE / "templates")
    environment.filters["moment"] = moment
    environment.filters["ending"] = lambda name: name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
    return environment


def moment(when: str) -> str:
    """A time of the log for people; text that is none as it is.

    Example:
        >>> moment("2026-11-29T05:18:09.771+00:00")
        '29 November 2026, 05:18 UTC'
    """
    try:
        known = datetime.fromisoformat(when).astimezone(UTC)
    except ValueError:
        return when
    return f"{known.day} {known:%B %Y, %H:%M} UTC"
