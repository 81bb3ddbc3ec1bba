"""Tables of other column names through every command, and options that must be obeyed to the last step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_cases import N, Y, answer, folder_of, refused, small

import tangentune
from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.estimators.summary import Plan
from tangentune.methods.source_selection.manifest import read_manifest

CHEAP = ["--metric-power", "0", "--normalize", "no", "--body-scale", "0.3", "--damping", "0.05", "--n-jobs", "1"]
CHEAP += ["--outer-steps", "0", "--augment", "none"]
COLUMNS = ["--path-column", "wo", "--label-column", "was"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network under any name."""
    for where in ("networks.backbone", "estimators.saving"):
        monkeypatch.setattr(f"tangentune.{where}.load_backbone", small)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder_of(tmp_path / "p", list(range(N)), [f"c{y}" for y in Y[:N]])
    folder_of(tmp_path / "new", list(range(N, 30)), [f"c{y}" for y in Y[N:]])
    for name in ("p", "new"):
        files = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / name).rglob("*.png"))
        rows = [f"{i},{file},{file.split('/')[1]}" for i, file in enumerate(files)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["n,wo,was", *rows]))
    return tmp_path


def test_columns_are_named_in_every_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "fit", root / "p", "--out", root / "m", *CHEAP)
    document = answer(capsys, "fit", root / "p.csv", "--out", root / "t", *CHEAP, *COLUMNS)
    one, other = (TangentClassifier.from_pretrained(root / name) for name in ("m", "t"))
    assert document["n"] == N
    assert (one.loo_predictions_ == other.loo_predictions_).all()
    by_folder, by_table = answer(capsys, "predict", root / "m", root / "new"), None
    by_table = answer(capsys, "predict", root / "m", root / "new.csv", *COLUMNS[:2])
    assert [row["label"] for row in by_table["predictions"]] == [row["label"] for row in by_folder["predictions"]]
    scores = [answer(capsys, "evaluate", root / "m", *more) for more in ([root / "new"], [root / "new.csv", *COLUMNS])]
    assert scores[0] == scores[1]
    assert len(answer(capsys, "explain", root / "m", root / "new.csv", *COLUMNS)["explanations"]) == 10
    assert answer(capsys, "add", root / "m", root / "new.csv", *COLUMNS)["n"]["after"] == 30
    select = ["select", "--out", root / "s.json", "--budget", 3, "--n-jobs", 1, "--page", root / "s.html"]
    assert answer(capsys, *select, "--target", root / "p.csv", "--source", root / "new.csv", *COLUMNS)["n"] == 3
    assert (root / "s.html").exists()
    compare = ["compare", root / "p.csv", "--test", root / "new.csv", "--out", root / "c", "--methods", "probe"]
    assert answer(capsys, *compare, "--shots", 2, "--seeds", 1, "--n-jobs", 1, *COLUMNS)["rows"]
    refused(
        capsys,
        "fit",
        root / "p.csv",
        "--out",
        root / "n",
        words=("n, wo, was", "Name others with --path-column NAME, --label-column NAME."),
    )


def test_corrections_come_in_tables_of_usual_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "fit", root / "p", "--out", root / "m", *CHEAP)
    first = TangentClassifier.from_pretrained(root / "m").ids_[0]
    (root / "fix.csv").write_text(f"File,Class\n{first},c3\n")
    answer(capsys, "relabel", root / "m", "--from", root / "fix.csv")
    assert TangentClassifier.from_pretrained(root / "m").targets_[0] == "c3"


def test_layers_are_shown_only_if_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, shown in (([], False), (["--verbose"], True), (["-v"], True)):
        assert main(["fit", str(root / "p"), "--out", str(root / "m"), *CHEAP, *more]) == 0
        err = capsys.readouterr().err
        assert "to 20 pictures will take about" in err
        assert ("Kernel from" in err) == shown


@pytest.mark.parametrize(("seconds", "size", "told"), [(61, [], True), (59, [], False), (61, ["--size", "8"], False)])
def test_a_long_fit_of_large_pictures_says_how_to_begin(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    seconds: int, size: list[str], told: bool,
) -> None:  # fmt: skip
    usual = TangentClassifier.fit

    def long(self: TangentClassifier, *given: Any, tell: Any, **more: Any) -> TangentClassifier:
        def slower(plan: Plan) -> None:
            plan["seconds"] = seconds
            tell(plan)

        return usual(self, *given, tell=slower, **more)

    monkeypatch.setattr(TangentClassifier, "fit", long)
    monkeypatch.setattr("tangentune.cli.fit._QUICK", 4)
    assert main(["fit", str(root / "p"), "--out", str(root / "m"), *CHEAP, *size]) == 0
    sentence = "note: pictures are 8 pixels wide, the network's own size; start with --size 4, about 25 % of the work"
    assert (sentence in capsys.readouterr().err) == told


def test_skipping_is_obeyed_to_the_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first picture of a target class, which the page would show, is damaged."""
    damaged = sorted((root / "p" / "c0").iterdir())[0]
    damaged.write_bytes(b"\x89PNG no picture")
    select = ["select", "--target", root / "p", "--source", root / "new", "--out", root / "s.json", "--budget", 3]
    more = ["--n-jobs", 1, "--page", root / "s.html", "--on-error", "skip"]
    assert answer(capsys, *select, *more)["n"] == 3
    page = (root / "s.html").read_text(encoding="utf-8")
    assert f"c0/{damaged.name}" not in page
    assert page.count("<img ") == 2 * 4 + 3


def test_the_manifest_is_written_before_its_page(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tangentune.reports.selection_page.load_selected

    def gone(*arguments: Any, **more: Any) -> Any:
        shutil.rmtree(root / "new")
        return real(*arguments, **more)

    monkeypatch.setattr("tangentune.reports.selection_page.load_selected", gone)
    select = ["select", "--target", root / "p", "--source", root / "new", "--out", root / "s.json", "--budget", 3]
    words = ("is missing", "s.json, only the page is missing")
    refused(capsys, *select, "--n-jobs", 1, "--page", root / "s.html", words=words)
    assert len(read_manifest(root / "s.json")) == 3
    assert not (root / "s.html").exists()


def test_skipping_is_obeyed_by_the_source_of_a_fit(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "new" / "c0" / "bad.png").write_bytes(b"\x89PNG no picture")
    fit = ["fit", root / "p", "--out", root / "m", *CHEAP, "--source", root / "new"]
    refused(capsys, *fit, words=("c0/bad.png", "--on-error skip"))
    assert answer(capsys, *fit, "--on-error", "skip")["source"]["pictures"] == 10


def test_an_answer_is_printed_before_its_page(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(capsys, "fit", root / "p", "--out", root / "m", *CHEAP)

    def fail(*_: Any) -> Any:
        message = "no room"
        raise tangentune.TangentuneError(message)

    monkeypatch.setattr("tangentune.reports.pages.write_page", fail)
    for command in (["suspects", "m"], ["explain", "m", "new"]):
        arguments = [command[0], *(str(root / word) for word in command[1:]), "--out", str(root / "x.html"), "-q"]
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert ".png" in out
        assert err == "error: no room\n"


def test_the_command_that_is_shown_mends_a_suspect(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken from the terminal or the page as it stands, and names with blanks and quotes go through."""
    import html
    import shlex

    (root / "p" / "c0").rename(root / "p" / "-it's a; $c")
    monkeypatch.chdir(root)
    answer(capsys, "fit", "p", "--out", "my m", *CHEAP)
    assert main(["suspects", "my m", "--out", "s.html", "-q"]) == 0
    shown = capsys.readouterr().out.splitlines()[-2]
    page = (root / "s.html").read_text(encoding="utf-8")
    commands = [html.unescape(code) for code in re.findall("<code>(.*?)</code>", page)]
    assert commands[0] == shown
    assert len(commands) == N
    assert page.count("<script") == 1  # ours, by its hash
    for command in (shown, next(one for one in commands if "-it" in one)):
        words = shlex.split(command)
        assert words[:3] == ["tangentune", "relabel", "my m"]
        assert main([words[1], "-q", *words[2:]]) == 0
        fitted = TangentClassifier.from_pretrained("my m")
        assert fitted.targets_[fitted.ids_.index(words[-2])] == words[-1]
    assert main(["report", "my m"]) == 0
    report = (root / "my m" / "report.html").read_text(encoding="utf-8")
    assert all(
        word in html.unescape(report)
        for word in ("tangentune relabel 'my m'", TangentClassifier.from_pretrained("my m").ids_[0])
    )


def test_characters_that_cannot_be_seen_are_pasted_as_bytes() -> None:
    from tangentune.reports.pages import relabel_command

    command = relabel_command("m", "a\x1b[201~; rm -rf x\n'\u202e.png", "b")
    assert command == "tangentune relabel m $'a\\x1b[201~; rm -rf x\\x0a\\x27\\xe2\\x80\\xae.png' b"
    assert relabel_command(None, "ä 1.png", "b") == "tangentune relabel MODEL 'ä 1.png' b"
    assert relabel_command("-m", "1", "-b") == "tangentune relabel ./-m -- 1 -b"
