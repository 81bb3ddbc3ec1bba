"""What an import brings in: every public name, no torch before it is needed, no model hub ever."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tangentune

PACKAGE = Path(tangentune.__path__[0])
HUBS = ("torchvision", "timm", "transformers")
HEAVY = ("torch", "sklearn", "scipy", "matplotlib", "PIL", "jinja2", "safetensors")


def python(code: str, folder: Path | None = None) -> str:
    """Standard output of a fresh interpreter, started in a folder."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.parametrize("name", [name for name in tangentune.__all__ if name not in tangentune._MODULES])
def test_public_name(name: str) -> None:
    thing = getattr(tangentune, name)
    assert thing.__name__ == name
    assert thing.__module__.startswith("tangentune.")
    assert thing.__doc__


def test_lazy_names_are_the_public_ones() -> None:
    """What type checkers see, what `__getattr__` finds and what `__all__` lists are the same names."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tangentune")
        for alias in node.names
        if alias.name != "__version__"
    }
    assert typed == set(tangentune.__all__)
    assert set(tangentune.__all__) == {*tangentune._HOMES, *tangentune._MODULES}
    assert tangentune.__all__ == sorted(tangentune.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'TangentClasifier'"):
        _ = tangentune.TangentClasifier
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec("from tangentune import no_such_name")


@pytest.mark.parametrize("module", ["tangentune", "tangentune.cli.app"])
def test_import_is_light(module: str) -> None:
    """`tangentune --help` and typing mistakes must not wait seconds for torch."""
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert python(code).split() == []


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom tangentune.cli.app import main\n"
        "for arguments in (['--help'], ['fit', '--help'], ['fit', '--no-such-option']):\n"
        "    main(arguments)\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "heavy:"


# One fresh interpreter, since torch and scikit-learn alone take seconds: the estimators' import, an edit on the command
# line, then the public modules' names and every module there is. A finder notes every attempt to import a hub, whether
# or not the hub is installed.
LIFE = f"""
import importlib, pkgutil, sys
from pathlib import Path
asked = []
class Note:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {HUBS}:
            asked.append(name)
            raise ImportError(name)
sys.meta_path.insert(0, Note())
import torch, sklearn.base, sklearn.metrics, sklearn.utils.validation
before = set(sys.modules)
from tangentune import TangentClassifier, TangentRegressor
print('told', *sorted(set(sys.modules) - before))

sys.path.insert(0, {str(PACKAGE.parents[1] / "tests")!r})
from cli_cases import folder_of, small
from small import FIXED, pictures
TangentClassifier(small(), **FIXED).fit(*pictures(20)).save_pretrained('m')
import tangentune.estimators.saving as saving
saving.load_backbone = small
from tangentune.cli.app import main
assert main(['forget', 'm', '3', '-q']) == 0
print('told', *sorted(sys.modules))
folder_of(Path('new'), [0, 1, 2, 3], [0, 1, 2, 3])
assert main(['evaluate', 'm', 'new', '--n-jobs', '1', '-q']) == 0
print('told', *sorted(sys.modules))

import tangentune
print('told', tangentune.transport.unbalanced_sinkhorn.__name__)
from tangentune.ntk.settings import Settings as ours
from tangentune.methods.ntk import settings
import tangentune.kfac, tangentune.leaky
print('told', ours is settings.Settings, tangentune.kfac.kfac.__name__, tangentune.kfac.__spec__.name)
count = 0
for module in pkgutil.walk_packages(tangentune.__path__, 'tangentune.'):
    importlib.import_module(module.name)
    count += 1
print('told', count, *asked)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What that interpreter says, line by line; the edit prints lines of its own."""
    lines = python(LIFE, tmp_path_factory.mktemp("life")).splitlines()
    return [line.removeprefix("told ") for line in lines if line.startswith("told ")]


def test_the_estimators_bring_little_beyond_torch_and_scikit_learn(told: list[str]) -> None:
    """What `from tangentune import TangentClassifier` costs is the import of our own modules, and of small ones."""
    new = told[0].split()
    others = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert {name for name in others if not name.startswith("_")} <= {
        "tangentune",
        "PIL",
        "tqdm",
        "psutil",
        "safetensors",
    }
    rooms = {name.split(".")[1] for name in new if name.startswith("tangentune.")}
    assert not rooms & {"reports", "comparison", "workbench", "cli"}
    assert "tangentune.methods.source_selection" not in new
    assert not [name for name in new if name.startswith(("torch.", "sklearn.", "scipy."))], "slow parts of others"


def test_an_edit_on_the_command_line_brings_what_it_needs(told: list[str]) -> None:
    """No plots, pages, servers or other methods. (Where pandas is installed, scikit-learn brings it.)"""
    there = set(told[1].split())
    assert "tangentune.cli.edit" in there
    unwanted = {"matplotlib", "starlette", "datasets", "tangentune.reports.figures"}
    unwanted |= {
        "tangentune.workbench.session",
        "tangentune.comparison.run",
        "tangentune.methods.source_selection.select",
    }
    assert unwanted & there == set()


def test_scores_on_the_command_line_draw_nothing(told: list[str]) -> None:
    there = set(told[2].split())
    assert "tangentune.reports.evaluation" in there
    assert {"matplotlib", "tangentune.reports.figures"} & there == set()


def test_no_module_imports_a_hub(told: list[str]) -> None:
    """Not even in a `try`."""
    count, *asked = told[5].split()
    assert int(count) > 40
    assert asked == []


def test_public_modules_are_the_ones_of_the_table_not_copies(told: list[str]) -> None:
    """`import tangentune.lqf` works as it did before the rooms, and gives the module that the code itself uses."""
    assert told[3:5] == ["unbalanced_sinkhorn", "True kfac tangentune.jacobian.kfac"]
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'tangentune\.lqf\.no_such_module'"):
        importlib.import_module("tangentune.lqf.no_such_module")


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert dir(tangentune) == sorted(tangentune.__all__)
