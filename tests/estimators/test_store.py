"""The model directory: exact round trips, atomic replacement, and a clear sentence for every kind of damage."""

from __future__ import annotations

import doctest
import errno
import json
import os
import shutil
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import child, wait

from tangentune import _files
from tangentune.errors import InputError, StoreError
from tangentune.estimators import audit
from tangentune.estimators import model_directory as store
from tangentune.estimators.model_directory import ENVELOPE, check_destination, read_config, read_model, write_model

SETTINGS = {"estimator": "TangentClassifier", "damping": 0.1 + 0.2, "classes": ["a", "ü", "猫"], "seed": None}


def tensors(seed: int = 0, n: int = 5) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return {
        "solution": torch.randn(n, 3, generator=gen, dtype=torch.float64),
        "pixels": torch.randint(0, 256, (2, 3, 4, 4), generator=gen, dtype=torch.uint8),
        "nothing": torch.zeros(0, 7),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_model(folder, SETTINGS, tensors(), "# card ü\n")
    return folder


def refused(call, *words: str) -> None:
    with pytest.raises(StoreError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_round_trip_is_exact(model: Path) -> None:
    config, arrays, *_ = read_model(model)
    assert config == SETTINGS
    assert list(config) == list(SETTINGS)
    for name, tensor in tensors().items():
        assert arrays[name].dtype == tensor.dtype
        assert torch.equal(arrays[name], tensor)
    assert (model / "README.md").read_text(encoding="utf-8") == "# card ü\n"
    assert sorted(p.name for p in model.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in model.parent.iterdir()] == ["model"]


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda s: s.isidentifier() and s not in ENVELOPE),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(),
        ),
        max_size=4,
    )
)
def test_any_json_settings_survive(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    folder = tmp_path_factory.mktemp("any") / "m"
    write_model(folder, config, {}, "")
    assert read_config(folder) == config


def test_views_shared_and_transposed_tensors_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    arrays = {"whole": base, "again": base, "turned": base.T, "part": base[1:2, :2]}
    write_model(tmp_path / "m", {}, arrays, "")
    _, read, *_ = read_model(tmp_path / "m")
    assert all(torch.equal(read[k], v) for k, v in arrays.items())
    assert (tmp_path / "m" / store.TENSORS).stat().st_size < 1000


def test_read_tensors_are_ordinary_memory(model: Path) -> None:
    """Aligned like new tensors and not mapped from the file, else products may differ in the last bit."""
    _, arrays, *_ = read_model(model)
    with (model / store.TENSORS).open("r+b") as stream:
        stream.write(b"\0" * 64)
    assert torch.equal(arrays["solution"], tensors()["solution"])
    assert arrays["solution"].data_ptr() % 64 == 0


def test_numpy_values_and_paths_become_json(tmp_path: Path) -> None:
    config = {"a": np.float32(0.5), "b": np.arange(3), "c": (1, 2), "d": Path("x/y"), "e": np.bool_(True)}
    write_model(tmp_path / "m", config, {}, "")
    assert read_config(tmp_path / "m") == {"a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": "x/y", "e": True}


def test_file_names_that_are_no_text_survive(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.jpg"), "猫.jpg"]
    write_model(tmp_path / "m", {"ids": names}, {}, f"# {names[0]}")
    assert read_config(tmp_path / "m") == {"ids": names}
    assert "猫" in (tmp_path / "m" / store.CONFIG).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        ({"rows": [{"loo": float("nan")}]}, "config.rows[0].loo"),
        ({"f": {1: 2}}, "config.f"),
        ({"f": object()}, "config.f"),
        ({"tensors": 1}, "'tensors'"),
    ],
)
def test_settings_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path: Path, bad: dict, place: str) -> None:
    refused(lambda: write_model(tmp_path / "m", bad, {}, ""), place)
    assert not list(tmp_path.iterdir())


def test_replacing_keeps_mode_and_report_goes_with_the_old_model(model: Path) -> None:
    model.chmod(0o750)
    (model / store.REPORT).write_text("old report")
    write_model(model, {"v": 2}, {}, "")
    assert read_config(model) == {"v": 2}
    assert stat.S_IMODE(model.stat().st_mode) == 0o750
    assert not (model / store.REPORT).exists()
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_model(tmp_path / "m", {}, tensors(), "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "m").iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("call", "nth", "exchange"),
    [
        ("mkdir", 2, True),
        *[("fsync", n, True) for n in range(1, 5)],
        ("fsync", 4, False),
        ("rename", 2, False),
    ],
)
def test_failure_at_any_step_leaves_the_old_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, exchange: bool
) -> None:
    """Break the nth system call of a kind, with and without an atomic swap: old model whole, nothing beside it."""
    if not exchange:
        monkeypatch.setattr(_files, "exchange", lambda one, other: False)
    real, count = getattr(os, call), 0

    def fail(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        refused(lambda: write_model(model, {"v": 2}, tensors(1), ""), "disk is full", str(model))
    assert read_model(model)[0] == SETTINGS
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_two_step_replacement_works_and_its_crash_is_explained(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "exchange", lambda one, other: False)
    write_model(model, {"v": 2}, {}, "")
    assert read_config(model) == {"v": 2}
    assert [p.name for p in model.parent.iterdir()] == ["model"]
    former = model.parent / f".{model.name}.0123456789ab{_files._FORMER}"
    model.rename(former)  # what a kill between the two renames leaves
    refused(lambda: read_model(model), str(former), "rename it back")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child process")
def test_killed_half_way_old_model_stays_and_debris_is_swept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def crash(path: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            os._exit(9)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "flush", crash)
        assert wait(child(lambda: write_model(model, {"v": 2}, {"x": torch.zeros(9)}, "new"))) == 9
    assert read_model(model)[0] == SETTINGS
    left = [p for p in model.parent.iterdir() if p != model and not p.name.endswith("-lock")]
    assert len(left) == 1
    assert left[0].name.startswith(".")
    assert left[0].name.endswith("partial")
    write_model(model, SETTINGS, tensors(), "")
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_half_written_directory_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / store.TENSORS).write_bytes(b"partly")
    refused(lambda: read_model(tmp_path / "m"), "not a tangentune model", "config.json")


def test_full_disk_is_told_before_writing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(model)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(lambda: write_model(model, {}, tensors(), ""), "disk is full", "MiB are free", "nothing was changed")
    assert read_model(model)[0] == SETTINGS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a file-size limit on a child process")
def test_write_error_inside_the_tensor_library_is_one_sentence(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = tmp_path_factory.mktemp("told") / "told.txt"

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        write_model(model, {}, {"x": torch.zeros(9999)}, "")

    assert wait(child(work, told)) == 1
    said = told.read_text(encoding="utf-8")
    assert "StoreError: cannot write the model" in said
    assert "disk is full" in said
    assert read_model(model)[0] == SETTINGS
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_destinations_that_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(lambda: check_destination(tmp_path / "file"), "file", "name a directory")
    refused(lambda: check_destination(tmp_path / "file" / "m"), "is a file, not a directory")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    refused(lambda: write_model(tmp_path / "photos", {}, {}, ""), "not a tangentune model", "left alone")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text('{"model_type": "bert"}')
    refused(lambda: write_model(tmp_path / "hub", {}, {}, ""), "not a tangentune model")
    (model / "notes.txt").write_text("mine")
    refused(lambda: write_model(model, {}, {}, ""), "'notes.txt'", "would delete")
    assert (model / "notes.txt").read_text() == "mine"
    assert read_model(model)[0] == SETTINGS


def test_unwritable_directory_is_refused_early(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != model.parent)
    refused(lambda: check_destination(model), "no permission", str(model.parent))
    refused(lambda: check_destination(model.parent / "new" / "m"), "no permission", str(model.parent))


def test_empty_directory_nested_parents_and_link_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_model(tmp_path / "empty", {"v": 1}, {}, "")
    write_model(tmp_path / "a" / "b" / "m", {"v": 2}, {}, "")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write_model(tmp_path / "link", {"v": 3}, {}, "")
    assert (tmp_path / "link").is_symlink()
    assert [read_config(tmp_path / p)["v"] for p in ("empty", "a/b/m", "link")] == [3, 2, 3]


def edit(model: Path, **changes: object) -> None:
    """Change config.json and put its checksum right again."""
    config = json.loads((model / store.CONFIG).read_text(encoding="utf-8")) | changes
    config["config_sha256"] = audit.seal(config, "config_sha256")
    (model / store.CONFIG).write_text(json.dumps(config), encoding="utf-8")


def test_damage_is_named(model: Path, tmp_path: Path) -> None:
    file, config = model / store.TENSORS, model / store.CONFIG
    whole, text = file.read_bytes(), config.read_bytes()

    refused(lambda: read_model(tmp_path / "none"), "does not exist")
    file.write_bytes(whole[:-1])
    refused(lambda: read_model(model), str(file), "damaged", "bytes instead of")
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(lambda: read_model(model), str(file), "damaged", "sha256")
    file.unlink()
    refused(lambda: read_model(model), str(file), "missing")
    file.write_bytes(whole)

    for length in (0, 1, len(text) // 2):
        config.write_bytes(text[:length])
        refused(lambda: read_model(model), str(config), "damaged")
    config.write_bytes(text.replace(b"0.30000000000000004", b"0.40000000000000004"))
    refused(lambda: read_model(model), str(config), "edited by hand")
    config.write_bytes(b"\xff\xfe")
    refused(lambda: read_model(model), str(config), "damaged")
    config.write_text("[]")
    refused(lambda: read_model(model), "does not describe")
    config.write_bytes(text)
    assert read_model(model)[0] == SETTINGS


def test_every_single_byte_of_the_settings_is_guarded(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_model(folder, {"damping": 0.25}, {}, "")
    text = (folder / store.CONFIG).read_bytes()
    for position in range(0, len(text), 3):
        (folder / store.CONFIG).write_bytes(text[:position] + bytes([text[position] ^ 4]) + text[position + 1 :])
        try:
            assert read_config(folder) == {"damping": 0.25}  # a blank between tokens carries nothing
        except StoreError:
            continue


def test_newer_version(model: Path) -> None:
    assert read_model(model)[0] == SETTINGS
    edit(model, format_version=99)
    refused(lambda: read_model(model), "format version 99", "pip install --upgrade tangentune")
    edit(model, format_version="1")
    refused(lambda: read_model(model), "'format_version'")


def test_array_names_must_match(model: Path) -> None:
    listed = json.loads((model / store.CONFIG).read_text(encoding="utf-8"))["tensors"]
    edit(model, tensors={**listed, "names": ["solution"]})
    refused(lambda: read_model(model), "does not hold the arrays")


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system cannot swap two directories")
def test_readers_never_see_half_of_two_models(tmp_path: Path) -> None:
    """One thread rewrites, others read: each read is one whole version (settings and tensors agree)."""
    folder = tmp_path / "m"
    write_model(folder, {"v": 0}, {"x": torch.full((1000,), 0.0)}, "")
    faults: list[str] = []
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                config, arrays, *_ = read_model(folder)
            except StoreError as error:
                if "over and over" not in str(error):
                    faults.append(str(error))
                continue
            seen.add(config["v"])
            if not torch.equal(arrays["x"], torch.full((1000,), float(config["v"]))):
                faults.append(f"version {config['v']} is mixed")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for version in range(1, 60):
            write_model(folder, {"v": version}, {"x": torch.full((1000,), float(version))}, "")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert len(seen) > 1


def test_plain_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(InputError, match=r"here\[1\] is inf"):
        _files.plain([1.0, np.float64("inf")], "here")


@pytest.mark.parametrize("module", [store, _files])
def test_examples_in_docstrings_run(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
