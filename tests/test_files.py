"""Named tensors with a header in one file: read as written, refused where they are something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import InputError, StoreError

TENSORS = {"wide": torch.arange(6.0).reshape(2, 3).T, "few": torch.tensor([1, 2]), "none": torch.zeros(0, 2)}
FACTS = {"word": "plain {text}", "table": {"ü": [1, 0.1 + 0.2, None]}, "row": [True, "b"]}


def test_facts_and_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "new" / "thing.safetensors"
    write_tensors(file, "thing", FACTS, TENSORS)
    facts, tensors = read_tensors(file, "thing")
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    write_tensors(file, "thing", {}, {"few": tensors["few"] + 1})
    assert read_tensors(file, "thing")[1]["few"].tolist() == [2, 3]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_of_another_kind_is_refused_unless_any_will_do(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    write_tensors(file, "thing", FACTS, TENSORS)
    with pytest.raises(StoreError, match="holds no task vector written by tangentune"):
        read_tensors(file, "task vector")
    save_file({"a": torch.ones(1)}, file, metadata={"note": "[not JSON"})
    with pytest.raises(StoreError, match="holds no thing"):
        read_tensors(file, "thing")
    header, tensors = read_tensors(file, "thing", foreign=True)
    assert header == {"note": "[not JSON"}
    assert tensors["a"].tolist() == [1]


def test_damage_and_refusals_are_told_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    with pytest.raises(StoreError, match="no thing can be read from"):
        read_tensors(file, "thing")
    save_file({"a": torch.ones(1)}, file, metadata={"kind": "tangentune thing", "table": '{"cut'})
    with pytest.raises(StoreError, match="no thing can be read from"):
        read_tensors(file, "thing")
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(StoreError, match="no thing can be read from"):
        read_tensors(file, "thing")
    with pytest.raises(StoreError, match="cannot write"):
        write_tensors(file / "below" / "it", "thing", {}, TENSORS)
    with pytest.raises(InputError, match=r"table\.a is nan"):
        write_tensors(file, "thing", {"table": {"a": float("nan")}}, TENSORS)
