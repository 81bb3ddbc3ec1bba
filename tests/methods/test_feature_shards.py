"""Features of any number: read from arrays, files and shards alike, and extracted so that a stop loses little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import child, wait
from PIL import Image
from small import MEAN, STD, backbone, pictures

from tangentune import Backbone
from tangentune.errors import InputError, PictureError, StoreError
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.source_selection import extract as extract_module
from tangentune.methods.source_selection.extract import (
    FeatureSet,
    extract_features,
    list_pictures,
    open_extracted,
)
from tangentune.methods.source_selection.features import Features, lengths, open_features, read_labels, stream
from tangentune.pictures.load import load_pictures

ROWS = np.random.default_rng(0).standard_normal((23, 5))


def sources(folder: Path, dtype: str = "float32") -> dict[str, Any]:
    """The same rows in memory, in one file, and in shards of uneven length."""
    rows = ROWS.astype(dtype)
    np.save(folder / "all.npy", rows)
    (folder / "shards").mkdir()
    for i, part in enumerate(np.split(rows, [4, 5, 17])):
        np.save(folder / "shards" / f"{i}.npy", part)
    shards = sorted((folder / "shards").glob("*.npy"))
    return {
        "array": rows,
        "tensor": torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="))),
        "file": folder / "all.npy",
        "folder": folder / "shards",
    } | {"list": [str(path) for path in shards]}


def joined(features: Features, size: int) -> np.ndarray:
    parts = [(first, rows) for first, rows, _ in stream(features, "pass", chunk=size)]
    assert [first for first, _ in parts] == list(range(0, features.count, size))
    return torch.cat([rows for _, rows in parts]).numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_every_source_gives_the_same_rows_in_any_steps(tmp_path: Path, dtype: str) -> None:
    given = sources(tmp_path, dtype)
    given["memory map"] = np.load(given["file"], mmap_mode="r")
    expected = ROWS.astype(dtype).astype(np.float32)
    for source in given.values():
        features = open_features(source)
        assert (features.count, features.width) == ROWS.shape
        for size in (7, 100, 4, 1):
            np.testing.assert_array_equal(joined(features, size), expected)
        wanted = [17, 3, 4, 5, 3, 22, 0]
        np.testing.assert_array_equal(features.rows(wanted).numpy(), expected[wanted])
        assert features.rows([]).shape == (0, 5)


def test_a_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """The peak of a process that passes over 64 MiB grows by its buffers, not by the file."""
    with (tmp_path / "big.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (64 << 10, 256)})
        for _ in range(64):
            file.write(np.ones((1 << 10, 256), dtype=np.float32).data)
    script = (
        "import resource, sys\n"
        "from tangentune.methods.source_selection.features import open_features, stream\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "features = open_features(sys.argv[1])\n"
        "for _ in stream(open_features(features.rows(range(2048))), 'warm up', chunk=1024): pass\n"
        "before = peak()\n"
        "rows = sum(len(rows) for _, rows, _ in stream(features, 'pass', chunk=1024))\n"
        "print(rows, peak() - before)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "big.npy"], capture_output=True, text=True, check=True
    )
    rows, grown_kib = map(int, ran.stdout.split())
    assert rows == 64 << 10
    assert grown_kib < 16 << 10


BROKEN: dict[str, tuple[Any, str]] = {
    "one dimension": (np.ones(3), "one row a picture"),
    "no rows": (np.ones((0, 3)), "is empty"),
    "whole numbers": (np.ones((2, 3), dtype=np.int64), "give numbers in float16"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_table_of_features_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    rows, message = BROKEN[case]
    with pytest.raises(InputError, match=message):
        open_features(rows)
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError, match=r"rows\.npy"):
        open_features(tmp_path / "rows.npy")


def test_broken_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    sources(tmp_path)
    np.save(tmp_path / "shards" / "9.npy", np.ones((2, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"9\.npy has features of width 4, but .*0\.npy of width 5"):
        open_features(tmp_path / "shards")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no \.npy file"):
        open_features(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be opened"):
        open_features(tmp_path / "missing.npy")
    (tmp_path / "text.npy").write_text("hello, this is text")
    with pytest.raises(InputError, match=r"is no \.npy file"):
        open_features(tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([["a", None]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="type object"):
        open_features(tmp_path / "objects.npy")
    np.save(tmp_path / "columns.npy", np.asfortranarray(ROWS))
    with pytest.raises(InputError, match="column by column"):
        open_features(tmp_path / "columns.npy")
    whole = (tmp_path / "all.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"short\.npy is cut short: 8 bytes are missing"):
        open_features(tmp_path / "short.npy")


@pytest.mark.parametrize(
    "value, message", [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "all zero"), (1e-30, "rescale")]
)
def test_the_first_row_without_a_direction_is_named(value: float, message: str, tmp_path: Path) -> None:
    rows = ROWS.astype(np.float32)
    rows[[13, 20]] = value
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError, match=f"row 13 .*{message}"):
        list(stream(open_features(tmp_path / "rows.npy"), "pass", chunk=4))


def test_lengths_are_those_of_float64() -> None:
    rows = torch.from_numpy(ROWS)
    torch.testing.assert_close(lengths(rows), rows.square().sum(1).sqrt(), rtol=1e-14, atol=0)


def test_an_error_while_reading_reaches_the_caller(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    features = open_features(tmp_path / "rows.npy")
    os.truncate(tmp_path / "rows.npy", 500)
    with pytest.raises(InputError, match="became shorter"):
        list(stream(features, "pass", chunk=4))


def test_labels_from_lists_and_arrays() -> None:
    assert read_labels(np.array([3, 12, 3]), 3).tolist() == read_labels([3, 12, 3], 3).tolist() == ["3", "12", "3"]
    assert read_labels(np.array(["cat", "dog"]), 2).tolist() == ["cat", "dog"]
    for labels, message in (([1, 2], "one label a row"), ([0.5, 1.0, 2.0], "fraction"), ([1, None, 2], "missing")):
        with pytest.raises(InputError, match=message):
            read_labels(labels, 3)
    with pytest.raises(InputError, match=r"the list of labels has the shape \(3,\) for 4 rows"):
        read_labels([3, 12, 3], 4)


def picture_folder(root: Path, n: int = 11) -> Path:
    x, labels = pictures(n, classes=3)
    for i, (picture, label) in enumerate(zip(x, labels, strict=True)):
        folder = root / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(picture, 0, 2)).save(folder / f"{i:02d}.png")
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def extracted(source: Any, net: Backbone, folder: Path, need_labels: bool = True, **fields: Any) -> FeatureSet:
    return extract_features(list_pictures(source, None, net.contract, need_labels=need_labels), net, folder, **fields)


def test_extracted_features_are_those_of_the_backbone(tmp_path: Path) -> None:
    net, root = backbone(), picture_folder(tmp_path / "pictures")
    found = extracted(root, net, tmp_path / "out", shard_size=4, batch_size=3)
    whole = load_pictures(root, contract=net.contract)
    assert whole.labels is not None
    assert found.labels is not None
    assert found.ids == whole.ids
    assert found.labels.tolist() == whole.labels.tolist()
    expected = mean_features(net, whole, 11, False).float()
    torch.testing.assert_close(found.features.rows(range(11)), expected, rtol=1e-5, atol=1e-6)
    assert sorted(files_of(tmp_path / "out")) == [*(f"features-0000{i}.npy" for i in range(3)), "index.json"]
    from_list = extracted(sorted(root.rglob("*.png")), net, tmp_path / "list", need_labels=False, shard_size=4)
    assert from_list.labels is None
    torch.testing.assert_close(from_list.features.rows(range(11)), expected, rtol=1e-5, atol=1e-6)
    in_memory = extracted(whole, net, tmp_path / "memory", shard_size=4, batch_size=3)
    assert torch.equal(in_memory.features.rows(range(11)), found.features.rows(range(11)))


def test_a_stopped_extraction_goes_on_and_gives_identical_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, root = backbone(), picture_folder(tmp_path / "pictures")
    extracted(root, net, tmp_path / "whole", shard_size=4)
    made, real = [], extract_module.feature_matrix

    def stopping(*args: Any, **fields: Any) -> torch.Tensor:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*args, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module, "feature_matrix", stopping)
        with pytest.raises(KeyboardInterrupt):
            extracted(root, net, tmp_path / "again", shard_size=4)
    assert sorted(files_of(tmp_path / "again")) == ["features-00000.npy", "features-00001.npy", "index.json"]
    with pytest.raises(StoreError, match="is not finished: features-00002"):
        open_extracted(tmp_path / "again")
    (tmp_path / "again" / "features-00001.npy").unlink()
    extracted(root, net, tmp_path / "again", shard_size=4)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")


def linear_backbone() -> Backbone:
    """Another one than `backbone`."""
    layer = torch.nn.Linear(192, 6)
    torch.nn.init.constant_(layer.weight, 0.1)
    torch.nn.init.zeros_(layer.bias)
    return Backbone(torch.nn.Sequential(torch.nn.Flatten(), layer), input_size=(3, 8, 8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a child process")
def test_a_killed_extraction_leaves_only_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out, write = picture_folder(tmp_path / "pictures"), tmp_path / "out", np.save

    def killed(file: Any, rows: Any, **fields: Any) -> None:
        if "features-00001" in file.name:
            file.write(b"half a shard")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, rows, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(extract_module.np, "save", killed)
        number = child(lambda: extracted(root, linear_backbone(), out, shard_size=4))
        assert wait(number) == -signal.SIGKILL
    left = files_of(out)
    assert any(name.endswith(".part") for name in left)
    extracted(root, linear_backbone(), out, shard_size=4)
    extracted(root, linear_backbone(), tmp_path / "whole", shard_size=4)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert left["features-00000.npy"] == files_of(out)["features-00000.npy"]


def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    net, root, out = backbone(), picture_folder(tmp_path / "pictures"), tmp_path / "out"
    extracted(root, net, out, shard_size=4)
    before = files_of(out)
    attempts: dict[str, Any] = {
        "another backbone": lambda: extracted(root, linear_backbone(), out, shard_size=4),
        "pictures of another size": lambda: extracted(root, net.with_size(12), out, shard_size=4),
        "shard_size 4": lambda: extracted(root, net, out, shard_size=5),
        "another list of pictures": lambda: extracted(picture_folder(tmp_path / "more", 12), net, out, shard_size=4),
        "holds other files": lambda: extracted(root, net, tmp_path, shard_size=4),
    }
    for message, attempt in attempts.items():
        with pytest.raises(StoreError, match=message):
            attempt()
    assert files_of(out) == before
    (out / "index.json").write_text(json.dumps({"kind": "something"}))
    with pytest.raises(StoreError, match="is no index of extracted features"):
        open_extracted(out)
    with pytest.raises(StoreError, match="holds no extracted features"):
        open_extracted(tmp_path / "nowhere")


def test_features_of_another_place_are_neither_gone_on_with_nor_taken_from_a_cache(tmp_path: Path) -> None:
    """The parameters are the same, and so is every number of the contract."""
    net, root = backbone(), picture_folder(tmp_path / "pictures")
    other = Backbone(net.module, features="7", input_size=(3, 8, 8), mean=MEAN, std=STD)
    assert other.contract == net.contract
    extracted(root, net, tmp_path / "out")
    with pytest.raises(StoreError, match="made with another place of the backbone's features"):
        extracted(root, other, tmp_path / "out")
    for one in (net, other):
        with extract_module.open_set(root, one, None, cache=tmp_path / "cache") as found:
            expected = mean_features(one, load_pictures(root, contract=one.contract), 8, False).float()
            np.testing.assert_allclose(found.features.rows(range(11)).numpy(), expected.numpy(), atol=1e-6)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_an_unreadable_picture_is_named_and_the_shards_before_it_stay(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pictures")
    bad = root / "class 2" / "08.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    with pytest.raises(PictureError, match=r"08\.png"):
        extracted(root, backbone(), tmp_path / "out", shard_size=4)
    assert "features-00001.npy" in files_of(tmp_path / "out")
