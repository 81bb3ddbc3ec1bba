"""What every page has in common: the model it shows, its template, its thumbnails, and how it is written to a file.

A page stands alone: it loads nothing from anywhere, and is whole without its script, which chooses and sorts pictures,
shows them larger and copies their names. No other script runs on it: its policy names this one by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shlex
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from tangentune._files import replaced_file
from tangentune._version import __version__
from tangentune.errors import nice_number
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.model_directory import Version, beside_version
from tangentune.estimators.regressor import TangentRegressor
from tangentune.pictures.pictures import Pictures
from tangentune.reports.glossary import Words

_THUMBNAIL = 176  # pixels of the longer side
_TEMPLATES = Path(__file__).parent / "templates"

Estimator = TangentClassifier | TangentRegressor  # fitted; pages look at public attributes only


def is_classifier(model: Estimator) -> TypeGuard[TangentClassifier]:
    """Whether a fitted model names classes; otherwise it predicts numbers."""
    return hasattr(model, "classes_")


def render(template: str, context: dict[str, Any]) -> str:
    """A page from one of the templates, as HTML."""
    known = {"version": __version__, "word": Words(), **_script()}
    return environment_of(_TEMPLATES).get_template(template).render(known | context)


@cache
def _script() -> dict[str, str]:
    """The pages' script, and its hash as a content security policy names it."""
    code = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    told = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return {"script": Markup(code), "script_hash": f"sha256-{told}"}


def network_name(model: Estimator) -> str:
    """The network in a sentence; one of somebody's own may have no name."""
    return "the network" if model.backbone_.name == "custom" else model.backbone_.name


@cache
def environment_of(folder: Path) -> Environment:
    """Of all templates in a folder, each of which is compiled once: that takes longer than filling it in."""
    loader = FileSystemLoader(folder)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = nice_number
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    return environment


def write_page(page: str, path: str | os.PathLike[str], shows: Version | None = None) -> Path:
    """Write a page, whole or not at all, and its folder; beside a saved model only if that is what it `shows`."""
    with beside_version(Path(path).parent, shows), replaced_file(path) as part:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def thumbnail(pictures: Pictures, position: int) -> dict[str, Any] | None:
    """A picture as a data URI, or None where there are none (vectors, or a model saved without)."""
    image = pictures.thumbnail(position)
    return None if image is None else embedded(image)


def embedded(image: Image.Image) -> dict[str, Any]:
    """A Pillow picture, small enough for a page, as a data URI."""
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = max(image.size) <= 64  # a few kilobytes without loss, and blown up without blur
    stream = io.BytesIO()
    image.save(stream, "PNG" if small else "JPEG", quality=82)
    code = base64.b64encode(stream.getvalue()).decode()
    uri = f"data:image/{'png' if small else 'jpeg'};base64,{code}"
    return {"uri": uri, "small": small, "width": image.width, "height": image.height}


def relabel_command(place: str | os.PathLike[str] | None, name: str, label: str) -> str:
    r"""The command that gives a picture of a saved model another label, to be pasted into a shell as it stands.

    Example:
        >>> relabel_command("my models/m", "cat/it's 1.png", "dog")
        'tangentune relabel \'my models/m\' \'cat/it\'"\'"\'s 1.png\' dog'
    """
    saved = "MODEL" if place is None else os.fspath(place)
    saved = os.path.join(os.curdir, saved) if saved.startswith("-") else saved
    ended = ["--"] if name.startswith("-") or label.startswith("-") else []  # they are no options
    return " ".join(["tangentune", "relabel", *map(shell_word, [saved, *ended, name, label])])


def shell_word(word: str) -> str:
    """A word for the shell; a character that cannot be seen is written as its bytes, for a paste must do no more."""
    if word.isprintable():
        return shlex.quote(word)
    shown = (one if one.isprintable() and one not in "\\'" else _bytes(one) for one in word)
    return f"$'{''.join(shown)}'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
