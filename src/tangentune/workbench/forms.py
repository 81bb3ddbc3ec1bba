"""What a request of the page says: the fields of its form, checked before anything is done."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from tangentune.errors import InputError, StaleError
from tangentune.workbench.edits import Kind
from tangentune.workbench.session import Session

_MOST_FIELD = 4 << 20  # characters of a form: some hundred thousand numbers of pictures


def check_version(session: Session, form: dict[str, str]) -> None:
    """Refuse, as stale, what was meant for another version than there is now."""
    if seen_version(form) != session.version:
        raise StaleError("the model has changed since this was shown; look at it again and repeat this")


def seen_version(form: dict[str, str]) -> int:
    """The version that a person saw; one that is no number is stale."""
    text = form.get("version", "")
    return int(text) if text.isdecimal() else -1


def edit_kind(given: str) -> Kind:
    """What an edit does; an InputError where it is none that a form may ask for."""
    if given not in ("relabel", "forget", "keep"):
        raise InputError("an edit relabels, forgets, or keeps")
    return given


def picture_numbers(text: str) -> tuple[int, ...]:
    """Numbers of pictures, separated by commas, each once; an InputError where they are none."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise InputError("pictures are named by their numbers") from None


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form; of a field that comes twice the last."""
    body = await request.body()
    if len(body) > _MOST_FIELD:
        raise InputError("this is too much for one edit; choose fewer pictures")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise InputError("this form cannot be read") from error
