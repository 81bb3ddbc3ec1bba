"""What commands on a saved model refuse, and that whatever fails leaves it as it was."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_cases import SETTINGS, N, X, Y, answer, digest, fitted, folder_of, refused, small
from PIL import Image
from small import MEAN, STD, network

from tangentune import Backbone, TangentClassifier, _files
from tangentune.cli.app import main

pytestmark = pytest.mark.usefixtures("loadable")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["forget", "m", "nothing"], ("'nothing'", "it has 20 pictures")),
        (["forget", "m", "--class", "9"], ("'9'", "0, 1, 2, 3")),
        (["forget", "m", "--class", "1", "--class", "2", "--class", "3"], ("label 0",)),
        (["forget", "m", *map(str, range(N))], ("at least 2",)),
        (["forget", "m"], ("name at least one picture",)),
        (["forget", "m", "--ids-from", "blank"], ("blank", "names no picture")),
        (["forget", "m", "--ids-from", "bytes"], ("bytes", "UTF-8")),
        (["forget", "numbers", "--class", "1"], ("predicts numbers",)),
        (["relabel", "m", "1"], ("LABEL",)),
        (["relabel", "m", "1", "2", "--from", "t.csv"], ("not both",)),
        (["relabel", "m", "1", "whale"], ("'whale'", "0, 1, 2, 3")),
        (["relabel", "m", "99", "1"], ("'99'",)),
        (["relabel", "numbers", "1", "much"], ("'much'", "number")),
        (["relabel", "m", "--from", "blank"], ("blank", "id and label")),
        (["relabel", "m", "--from", "two.csv"], ("two.csv", "two labels")),
        (["relabel", "m", "--from", "gap.csv"], ("Line 3", "no label")),
        (["relabel", "m", "--from", "odd.csv"], ("odd.csv", "table")),
        (["relabel", "m", "--from", "head.csv"], ("head.csv", "below")),
        (["add", "m", "blank"], ("blank",)),
        (["add", "m", "words"], ("'whale'", "0.png")),
        (["explain", "m", "words", "--top", "0"], ("--top",)),
        (["suspects", "m", "--top", "none"], ("--top", "'none' is not a number;")),
        (["explain", "m", "many"], ("21", "20")),
        (["explain", "m", "0.png", "--out", "why.pdf"], ("a page ends in .html, 'why.pdf' does not",)),
        (["suspects", "m", "--out", "s.csv"], ("'s.csv'",)),
        (["evaluate", "m", "words", "--page", "e.csv"], ("'e.csv'",)),
    ],
)
def test_mistakes_are_one_sentence_and_change_nothing(
    arguments: list[str],
    words: tuple[str, ...],
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved / "classes", "m")
    shutil.copytree(saved / "numbers", "numbers")
    for name, text in {
        "blank": "\n",
        "t.csv": "id,label\n1,2\n",
        "two.csv": "id,label\n1,2\n1,3\n",
        "gap.csv": "id;label\n1;2\n2;\n",
        "head.csv": "id,label\n",
        "odd.csv": f"id,label\n1,{'2' * 200_000}\n",
    }.items():
        Path(name).write_text(text)
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    Image.fromarray(X[20].transpose(1, 2, 0)).save("0.png")
    for folder, count in (("words/whale", 1), ("many", 21)):
        Path(folder).mkdir(parents=True)
        for i in range(count):
            shutil.copy("0.png", f"{folder}/{i}.png")
    before = digest(tmp_path)
    refused(capsys, *arguments, words=words)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (_files, "save_tensors", 2),  # while the pixels are written
        (_files, "flush", 3),
        (_files, "put_in_place", 1),
        (TangentClassifier, "save_pretrained", 1),
    ],
)
def test_failing_or_interrupted_write_leaves_every_byte(
    error: BaseException,
    owner: Any,
    name: str,
    call: int,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, calls, real = digest(model), [], getattr(owner, name)

    def fail(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) >= call:
            raise error
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, fail)
    code = main(["forget", str(model), "1", "-q"])
    out, err = capsys.readouterr()
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert digest(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["m"]
    monkeypatch.undo()
    monkeypatch.setattr("tangentune.estimators.saving.load_backbone", small)
    assert answer(capsys, "forget", model, "1")["n"]["after"] == N - 1


def test_model_changed_meanwhile_is_not_overwritten(
    model: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = TangentClassifier.forget

    def meanwhile(self: TangentClassifier, *arguments: Any, **more: Any) -> Any:
        other = TangentClassifier.from_pretrained(model)
        real(other, ["9"])
        other.save_pretrained(model)
        return real(self, *arguments, **more)

    monkeypatch.setattr(TangentClassifier, "forget", meanwhile)
    refused(capsys, "forget", model, "1", words=("changed by another process",))
    assert TangentClassifier.from_pretrained(model).ids_ == [str(i) for i in range(N) if i != 9]


def test_network_of_the_users_own_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Backbone(network(), input_size=(3, 8, 8), mean=MEAN, std=STD)
    TangentClassifier(own, **SETTINGS).fit(X[:N], Y[:N]).save_pretrained(tmp_path / "m")
    before = digest(tmp_path)
    for arguments in (["forget", "1"], ["relabel", "1", "2"], ["suspects"]):
        refused(capsys, arguments[0], tmp_path / "m", *arguments[1:], words=("a network of your own", "--backbone"))
    assert digest(tmp_path) == before


def test_model_without_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(X[:N], Y[:N]).save_pretrained(tmp_path / "m", pictures=False)
    picture = folder_of(tmp_path / "asked", [21], ["a"])
    refused(capsys, "forget", tmp_path / "m", "1", words=("without its pictures",))
    refused(capsys, "explain", tmp_path / "m", picture, words=("without its pictures",))
    assert answer(capsys, "suspects", tmp_path / "m")["suspects"]
    assert main(["suspects", str(tmp_path / "m"), "--out", str(tmp_path / "s.html")]) == 0
    assert "Look at each. Labels are corrected in the model with its pictures" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "m"), "--out", str(tmp_path / "r.html")]) == 0
    for page in ("s.html", "r.html"):  # no command that would be refused
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert "<img" not in text.replace("<img class=plot", "")
        assert "tangentune relabel" not in text
