"""The site that `make docs` builds from this folder, without network: settings of Sphinx, and the map of the pages.

The pages read as well without a site, so the map stands here and not in them: `CONTENTS` has it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "src"))

from tangentune import __version__  # noqa: E402

HOW_TO = ["imbalanced", "groups", "many-pictures", "several-machines", "several-owners", "task-vectors", "forgetting"]
HOW_TO += ["reading-the-report"]
# Which pages a page leads to, under a heading or none; "*" stands for the pages of a folder that are not yet named.
CONTENTS: dict[str, dict[str, list[str]]] = {
    "index": {
        "Learn": ["tutorials/plankton", "tutorials/engineer", "python", "inputs-and-outputs", "workbench"],
        "Do": [*(f"howto/{name}" for name in HOW_TO), "several-labels", "owners", "deployment"],
        "Understand": ["how-it-works", "exact", "notation", "papers", "measured", "glossary"],
        "Look up": ["Commands <reference/commands>", "reference/index", "gotchas", "threat-model", "security"],
        "Project": ["architecture", "decisions/README", "results/README", "contributing", "changes"],
    },
    "reference/index": {"": ["estimators", "pictures", "linearised", "methods"]},
    "decisions/README": {"": ["0*"]},
    "results/README": {"": ["*"]},
    "results/few_shot": {"": ["few_shot/*/comparison"]},
}

# Pages that are files of the repository's root.
ROOTED = {"contributing": "CONTRIBUTING.md", "changes": "CHANGELOG.md", "security": "SECURITY.md"}

project = "tangentune"
author = project_copyright = "The tangentune developers"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
templates_path: list[str] = []
exclude_patterns: list[str] = []
nitpicky = False  # types of torch and numpy have no page here

# Pages: Markdown and notebooks, which hold what they printed when they were run last.
nb_execution_mode = "off"
myst_heading_anchors = 3
default_role = "code"  # docstrings have single backticks
smartquotes = False  # what is copied is what was written

# Docstrings.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# Looks; furo loads nothing from other servers.
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"tangentune {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f57b0", "color-brand-content": "#1f57b0"},
    "dark_css_variables": {"color-brand-primary": "#7fb0ff", "color-brand-content": "#7fb0ff"},
}
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True


def read_from_root(app: Sphinx, page: str, source: list[str]) -> None:
    """A page that is a file of the root: its text, with links as they lead from here."""
    if page in ROOTED:
        file = DOCS.parent / ROOTED[page]
        app.env.note_dependency(str(file))
        source[0] = file.read_text(encoding="utf-8").replace("](docs/", "](")
    for name, rooted in ROOTED.items():
        source[0] = re.sub(rf"\]\((\.\./)?{re.escape(rooted)}\)", f"]({name}.md)", source[0])


def add_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    """The map's part of a page, below its text: drawn at the side, and on the page itself where it has no headings."""
    for heading, pages in CONTENTS.get(page, {}).items():
        options = [":glob:", ":maxdepth: 1", *([f":caption: {heading}", ":hidden:"] if heading else [])]
        source[0] += "\n\n```{toctree}\n" + "\n".join([*options, "", *pages]) + "\n```\n"


def leave_out_scikit_learn(_app: Sphinx, _what: str, _name: str, thing: object, skip: bool, _options: object) -> bool:
    """Methods that scikit-learn's base classes give to every estimator are described there."""
    return skip or (getattr(thing, "__module__", None) or "").startswith("sklearn")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read_from_root)
    app.connect("source-read", add_contents)
    app.connect("autodoc-skip-member", leave_out_scikit_learn)
