"""The model card: README.md of a saved model, written for the person who finds it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tangentune.errors import nice_number
from tangentune.estimators.summary import Summary, nice_bytes, nice_seconds, nice_setting, nice_settings
from tangentune.estimators.worth import verdict

if TYPE_CHECKING:  # templates are for saving; whoever only predicts need not wait for them
    from jinja2 import Template

_CLASSES_LISTED = 50


def render_card(facts: Summary, edits: int = 0, kept: bool = False) -> str:
    """The model card, as Markdown with a YAML head; no name in it can break the page. `edits` is the number of lines of
    the model's log, `kept` whether its training pictures lie beside it.
    """
    classes = list(zip(facts.classes, facts.counts, strict=True))
    if len(classes) > _CLASSES_LISTED:
        classes.sort(key=lambda pair: -pair[1])
    size = facts.contract["input_size"]
    options = [(name.replace("_", " "), nice_setting(value)) for name, value in facts.options.items()]
    return _template().render(
        facts=facts,
        estimator="TangentClassifier" if facts.classification else "TangentRegressor",
        classes=classes[:_CLASSES_LISTED],
        more=max(0, len(classes) - _CLASSES_LISTED),
        more_pictures=sum(count for _, count in classes[_CLASSES_LISTED:]),
        size=" × ".join(str(side) for side in size) if size else "nothing: vectors as they come",
        verdict=verdict(facts),
        settings=nice_settings(facts) + options,
        seconds=nice_seconds(facts.seconds),
        memory=nice_bytes(facts.peak_bytes),
        kept=kept,
        edits=edits,
    )


@cache
def _template() -> Template:
    """Compiled once: that takes longer than all the rest of saving a small model."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["md"] = escape_markdown  # Markdown is not escaped as HTML is
    environment.filters["number"] = nice_number
    environment.filters["digits"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    return environment.get_template("card.md.j2")


def escape_markdown(text: object) -> str:
    r"""Text that Markdown shows as it is, on one line.

    Example:
        >>> print(escape_markdown("a|b_c\n<d>"))
        a\|b\_c &lt;d>
    """
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", flat).replace("&", "&amp;").replace("<", "&lt;")
