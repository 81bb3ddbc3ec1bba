"""Estimators take data frames with the name of the column of labels, as their neighbours do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_cases import X, Y, folder_of, small
from small import FIXED

from tangentune import TangentClassifier
from tangentune.errors import InputError


@pytest.mark.filterwarnings("ignore:.*fitted on:UserWarning")
def test_a_frame_gives_the_model_of_its_folder(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = list(range(24))
    folder = folder_of(tmp_path / "p", rows, [f"c{label}" for label in Y[:24]])
    paths = sorted(folder.rglob("*.png"))
    frame = pandas.DataFrame({"file": list(map(str, paths)), "kind": [path.parent.name for path in paths], "n": 1})
    expected = TangentClassifier(small(), **FIXED).fit(folder)
    for labels in ("kind", frame["kind"], frame["kind"].tolist()):
        model = TangentClassifier(small(), **FIXED).fit(X=frame, y=labels)
        np.testing.assert_array_equal(model.loo_predictions_, expected.loo_predictions_)
        assert model.classes_.tolist() == expected.classes_.tolist()
    assert model.predict(frame).tolist() == expected.predict(folder).tolist()
    assert model.score(frame, "kind") == expected.score(folder)
    assert model.plan(frame, "kind")["n"] == 24
    more = frame.iloc[:2].assign(
        file=[str(path) for path in folder_of(tmp_path / "q", [24, 25], ["x", "x"]).rglob("*.png")]
    )
    assert len(model.add(more, "kind").ids_) == 26
    with pytest.raises(InputError, match="names no column species; it names file, kind, n"):
        TangentClassifier(small(), **FIXED).fit(frame, "species")
    with pytest.raises(InputError, match="'kind', the name of a column, but these pictures have no columns"):
        TangentClassifier(small(), **FIXED).fit(X[:9], "kind")
