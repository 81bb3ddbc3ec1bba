"""Every refusal of the command line is in its own words: no keyword, no call, no name of a Python option."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import folder_of, save_models, small
from PIL import Image
from small import FIXED, network, pictures

import tangentune
from tangentune import Backbone, TangentClassifier
from tangentune.cli.app import cli, main
from tangentune.cli.fit import fit
from tangentune.cli.options import Command
from tangentune.cli.run import print_json
from tangentune.cli.words import spoken

PYTHON = re.compile(
    r"\b[a-z]\w*=(?!=)|\w\((?!s\))|(?<![-\w/.'])[a-z]+(?:_[a-z0-9]+)+\b(?!\.(?:json|png))|\b[a-z]\w*_(?=\W|$)|"
    r"\bNone\b(?! of)|\bTrue\b|\bFalse\b"
)
VALUES = {"least_squares", "mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1"}


def python_words(sentence: str) -> list[str]:
    """What only Python says; advice for Python is marked as such, and comes last."""
    return [word for word in PYTHON.findall(sentence.split("in Python, ")[0]) if word not in VALUES]


FIT = "fit good --out n -q"
SELECT = "select --target good --source other --out s.json -q"
REFUSED = [
    "fit broken --out n",
    "fit flat --out n",
    "fit splits --out n",
    "fit empty --out n",
    "fit one --out n",
    "fit unnamed.csv --out n",
    "fit twice.csv --out n",
    "fit gap.csv --out n",
    "fit none.csv --out n",
    "fit latin.csv --out n",
    "fit named.csv --out n --path-column where",
    "fit named.csv --out n --label-column what",
    "fit good --out taken",
    f"{FIT} --backbone nosuch",
    f"{FIT} --backbone hf:nowhere",
    f"{FIT} --memory-budget 1KB",
    f"{FIT} --memory-budget many",
    f"{FIT} --metric-power loo --damping evidence",
    f"{FIT} --subset nothing.*",
    f"{FIT} --device abacus",
    f"{FIT} --regression",
    "fit numbers.csv --out n --regression --class-weight balanced",
    "fit numbers.csv --out n --regression --likelihood laplace",
    "fit numbers.csv --out n --regression --outer-steps 8",
    "fit numbers.csv --out n --regression --source other",
    f"{FIT} --source other --likelihood dirichlet",
    f"{FIT} --source other --outer-steps 8",
    f"{FIT} --source flat",
    f"{FIT} --source broken",
    f"{FIT} --source moved.json",
    f"{FIT} --source changed.json",
    f"{FIT} --quiet --verbose",
    "predict m broken",
    "predict m flat/notes.txt",
    "predict vectors good",
    "evaluate m other",
    "evaluate m flat",
    "explain m many",
    "explain m broken --out good",
    "suspects m --out good",
    "suspects m --top 0",
    "suspects own",
    "forget m nobody",
    "forget m --class whale",
    "forget m --class 0 --class 1 --class 2",
    "forget m",
    "forget m --ids-from none.csv",
    "relabel m 0 whale",
    "relabel m nobody 1",
    "relabel m --from unnamed.csv",
    "relabel m --from vague.csv",
    "relabel m --from two.csv",
    "relabel numbers 0 much",
    "add m broken",
    "add m other",
    "add numbers good",
    "labels m --apply flat",
    "labels m --apply good",
    "labels m --apply unnamed.csv",
    "labels m --apply one/a/0.png",
    "labels m --out taken",
    "labels m --forgotten new",
    "suggest m empty --budget 2",
    "suggest m broken --budget 2",
    "suggest m good --budget 5000",
    "suggest vectors good --budget 2",
    "report nowhere",
    "report m --out nowhere/r.html",
    f"{SELECT}",
    f"{SELECT} --budget 3 --unit classes --granularity pictures",
    f"{SELECT} --budget 3 --method nearest --granularity nested",
    f"{SELECT} --budget 3 --quota 9",
    f"{SELECT} --budget 3 --clusters 99",
    f"{SELECT} --budget 3 --source flat",
    f"{SELECT} --budget 3 --source f.npy",
    f"{SELECT} --budget 3 --target f.npy",
    f"{SELECT} --budget 3 --source broken",
    f"{SELECT} --budget 3 --target one",
    f"{SELECT} --budget 3 --out s.txt",
    "compare flat --out c",
    "compare broken --out c",
    "compare one --out c",
    "compare good --test other --out c",
    "compare good --methods best",
    "compare good --shots none",
    "compare good --test other --test-share 0.3",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, folders and tables, good ones and every kind of bad ones."""
    root = tmp_path_factory.mktemp("place")
    save_models(root)
    (root / "classes").rename(root / "m")
    x, y = pictures(16, classes=3)
    for name, net in (("own", Backbone(network(), input_size=(3, 8, 8))), ("vectors", None)):
        clf = TangentClassifier(net or Backbone(network_of_vectors(), name="small"), **FIXED)
        clf.fit(x if net else x[:, 0, 0].astype(np.float32), y).save_pretrained(root / name)
    folder_of(root / "good", list(range(9)), [f"c{i % 3}" for i in range(9)])
    folder_of(root / "other", list(range(10, 16)), [f"d{i % 2}" for i in range(6)])
    folder_of(root / "one", [0, 1], ["a", "a"])
    folder_of(root / "splits" / "train", [0, 1], ["a", "b"])
    folder_of(root / "splits" / "test", [2, 3], ["a", "b"])
    folder_of(root / "many", list(range(21)), ["a"] * 21)
    shutil.copytree(root / "good", root / "broken")
    for i in range(2):
        (root / "broken" / "c0" / f"x{i}.png").write_bytes(b"\x89PNG no picture")
    (root / "flat").mkdir()
    (root / "flat" / "notes.txt").write_text("x")
    Image.new("RGB", (8, 8)).save(root / "flat" / "1.png")
    (root / "empty").mkdir()
    (root / "taken").write_text("x")
    files = sorted(path.relative_to(root).as_posix() for path in (root / "good").rglob("*.png"))
    for name, text in {
        "unnamed.csv": "wo,was\n1,2\n",
        "twice.csv": "image,file,id,class\n1,2,3,4\n",
        "vague.csv": "image,file,class\n1,2,3\n",
        "gap.csv": "path,label\n1.png,\n",
        "none.csv": "\n",
        "two.csv": "id,label\n1,2\n1,3\n",
        "named.csv": "path,label\n" + "".join(f"{one},{one.split('/')[1]}\n" for one in files),
        "numbers.csv": "path,label\n" + "".join(f"{one},{i}.5\n" for i, one in enumerate(files)),
    }.items():
        (root / name).write_text(text)
    (root / "latin.csv").write_bytes(b"path,label\nM\xf6we.png,a\n")
    np.save(root / "f.npy", np.ones((3, 6), np.float32))
    for name in ("moved", "changed"):
        shutil.copytree(root / "other", root / name)
        from tangentune.methods.source_selection.manifest import write_manifest
        from tangentune.methods.source_selection.select import select_source

        found = select_source(root / "good", root / name, small(), budget=3, n_jobs=1).manifest
        write_manifest(root / f"{name}.json", found)
    shutil.rmtree(root / "moved")
    for path in (root / "changed").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    return root


def network_of_vectors() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh())


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_hold_no_python(
    words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    known = {"hf:nowhere", "nosuch"}
    real = tangentune.networks.backbone.load_backbone
    for where in ("networks.backbone", "estimators.saving"):
        monkeypatch.setattr(f"tangentune.{where}.load_backbone", lambda name: real(name) if name in known else small())
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    for line in lines:
        assert not python_words(line), line


def test_one_broken_picture_of_many_names_the_commands_own_option(
    place: Path, loadable: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(place / "m"), str(place / "broken")]) == 2
    err = capsys.readouterr().err
    assert "c0/x0.png" in err
    assert "or use --on-error skip" in err
    assert main(["predict", str(place / "m"), str(place / "broken"), "--on-error", "skip", "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count('"confidence"') == 9
    assert "note: 2 pictures were left out, 9 remain" in err


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ('Use on_error="skip".', "Use --on-error skip."),
        ("raise memory_budget, or give subset='last:K'", "raise --memory-budget, or give --subset last:K"),
        ("source= needs outer_steps=0, not 8", "--source needs --outer-steps 0, not 8"),
        ("n_jobs is 0; use n_jobs=1", "--n-jobs is 0; use --n-jobs 1"),
        ("the shots=3 of test_share is odd", "the shots=3 of test_share is odd"),  # of other commands, and unknown
        ("no; use Backbone(net, input_size=(3, 8, 8))", "no; in Python, use Backbone(net, input_size=(3, 8, 8))"),
        # file names, and what somebody wrote in quotes, stay as they are
        ("my n_jobs.png, a/batch_size/1.png, 'n_jobs', x_damping=1.png",) * 2,
    ],
)  # fmt: skip
def test_translation(sentence: str, words: str) -> None:
    assert fit.words(sentence) == words


def test_options_of_other_commands_become_plain_words() -> None:
    assert spoken("raise memory_budget or on_error='skip'", [], ["memory_budget", "on_error"]) == (
        "raise memory budget or on error skip"
    )
    assert spoken("fit with likelihood='least_squares'", [], ["likelihood"]) == "fit with likelihood least_squares"
    code = "wrap it: Backbone(module, input_size=(3, 8, 8), mean=..., std=...)"
    assert spoken(f"as they are; {code}", [], ["input_size"]) == f"as they are; in Python, {code}"
    code = "let it give Backbone(network, input_size=...)"
    assert spoken(f"add --size, or {code}", [], ["input_size"]) == f"add --size, or in Python, {code}"
    assert all(isinstance(command, Command) for command in cli.commands.values())  # which is where it happens


# What no command can provoke: arguments of functions, arrays, networks of one's own. How the sentences begin.
UNREACHABLE = [
    "plot_predictions is for regressors",
    "a regressor has no classes to plot",
    "X is X; it is True or False",
    "X is X, which JSON cannot hold",
    "backbone is a X",
    "return_std and return_cov",
    "requires y to be passed",
    "no id is given",
    "outputs=X",
    "the rows of X need X MB",
    "tolerance and",
    "load_",
    "check()",
    "Pictures are no array",
    "check(x)",
    "the inputs",
    "mean",
    "std",
    "interpolation",
    "crop",
    "the network overwrites",
    "features=X",
    "BatchNorm without",
    "the preprocessor's size=X",
    "the preprocessor normalises",
    "An array of shape X",
    "labels are one-hot",
    "labels are probabilities",
    "X cannot be used as pictures",
    "The contract's crop",
    "--n-jobs is X",
]  # fmt: skip
# Rooms that no command uses, or whose errors are our own.
ELSEWHERE = re.compile(
    r"methods/(?!source_selection)|cli/|solvers/|jacobian/(?:linearization|task_vector|forward_mode)|"
    r"networks/(?:leaky|heads|healing|split_network|network_function)"
)


def sentences(path: Path) -> list[str]:
    """What is raised in a file, or assigned to `message` or `problem`; X stands for every value."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("message", "problem"):
            said = node.value
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            said = node.exc.args[0]
        else:
            continue
        parts = said.values if isinstance(said, ast.JoinedStr) else [said]
        texts = [part.value if isinstance(part, ast.Constant) else "X" for part in parts]
        found.append("".join(text for text in texts if isinstance(text, str)))
    return found


def test_no_other_sentence_of_the_library_speaks_python_on_the_command_line() -> None:
    """A new one must be put so that a command can say it, be translated in cli/words.py, or be listed here."""
    root, odd, met = Path(tangentune.__path__[0]), [], set()
    commands = [command for command in cli.commands.values() if isinstance(command, Command)]
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for sentence in [] if ELSEWHERE.match(name) else sentences(path):
            spoken_by = [command.words(sentence) for command in commands]
            if any(not python_words(words) for words in spoken_by):
                continue
            known = [start for start in UNREACHABLE if any(words.startswith(start) for words in spoken_by)]
            met.update(known)
            odd += [] if known else [f"{name}: {sentence}"]
    assert not odd
    assert met == set(UNREACHABLE)


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    """All is done when an answer is printed; it is too late to refuse it."""
    print_json(
        {"a": [1.5, float("nan")], "b": {"c": np.float64("inf")}, "d": np.array([1.0, np.nan]), "e": (True, None)}
    )
    assert json.loads(capsys.readouterr().out) == {
        "a": [1.5, None],
        "b": {"c": None},
        "d": [1.0, None],
        "e": [True, None],
    }
