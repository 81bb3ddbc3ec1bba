"""Tar files of pictures: the same pictures as from files, and archives made to do harm."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from picture_cases import class_folder, colours
from PIL import Image

from tangentune import DataContract, load_pictures
from tangentune.errors import PictureError
from tangentune.pictures.shards import read_shards

RGB = DataContract(input_size=(3, 8, 8))


def png(i: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(colours(6)[i]).save(stream, "PNG")
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes, **header: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content) if member.isreg() else None)


def shard(path: Path, **members: bytes) -> Path:
    """A tar file; `_` stands for the dot of a name."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            add(archive, name.replace("_", "."), content)
    return path


def shards(folder: Path) -> Path:
    """The six pictures of `class_folder`, in two files."""
    folder.mkdir(parents=True)
    for part in range(2):
        members = {}
        for i in range(3 * part, 3 * part + 3):
            label = "cat" if i < 4 else "dog"
            members |= {f"{i}_png": png(i), f"{i}_cls": label.encode(), f"{i}_json": json.dumps({"n": i}).encode()}
        shard(folder / f"part-{part:02}.tar", **members)
    return folder


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_pictures_in_tar_files_are_those_of_the_folder(tmp_path: Path, n_jobs: int) -> None:
    expected, folder = load_pictures(class_folder(tmp_path / "p"), contract=RGB), shards(tmp_path / "s")
    paths = sorted(folder.iterdir())
    for source in (folder, paths, [str(path) for path in paths], str(folder / "part-{00..01}.tar")):
        found = load_pictures(source, contract=RGB, n_jobs=n_jobs)
        assert (found.pixels == expected.pixels).all()
        assert found.labels is not None
        assert found.labels.tolist() == ["cat"] * 4 + ["dog"] * 2
        assert found.ids == [f"part-0{i // 3}.tar/{i}.png" for i in range(6)]
    one = load_pictures(paths[1], contract=RGB, need_labels=False)
    assert (one.labels, one.ids) == (None, ["3.png", "4.png", "5.png"])
    numbers = load_pictures(folder, "n", contract=RGB).labels
    assert numbers is not None
    assert numbers.tolist() == list("012345")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for members, words in (
        ({"a_png": png(0)}, "a.png of .* has no label; put it beside the picture as a.cls"),
        ({"a_cls": b"cat"}, "holds no picture"),
        ({"a_png": png(0), "a_seg.png": png(1), "a_cls": b"cat"}, 'several pictures: png, seg.png; say which .*"png"'),
        ({"a_png": png(0), "a_json": b"[" * 99999}, "a.json of .* cannot be read as JSON"),
        ({"a_png": png(0), "a_json": b'{"label": ' + b"9" * 9999 + b"}"}, "a.json of .* cannot be read as JSON"),
        ({"a_png": png(0), "a_cls": b"\xff"}, "label of a in .* is no UTF-8"),
        ({"a_png": png(0), "a_cls": b"x" * (1 << 21)}, "label of a in .* has 2,097,152 bytes"),
    ):
        with pytest.raises(PictureError, match=words):
            load_pictures(shard(tmp_path / "a.tar", **members), contract=RGB)
    both = shard(tmp_path / "a.tar", a_png=png(0), a_seg_png=png(1), a_cls=b"cat")
    found = load_pictures(both, contract=RGB, path_column="seg.png")
    assert (found.pixels == load_pictures([png(1)], contract=RGB, need_labels=False).pixels).all()
    with pytest.warns(UserWarning, match=r"Samples without a picture are left out \(1\): .*a.tar: b"):
        load_pictures(shard(tmp_path / "a.tar", a_png=png(0), a_cls=b"cat", b_cls=b"dog"), contract=RGB)
    for name, words in (("no.tar", "no.tar does not exist"), ("p-{3..1}.tar", "runs from 3 to 1")):
        with pytest.raises(PictureError, match=words):
            load_pictures(tmp_path / name, contract=RGB)
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(PictureError, match="b.tar.gz is compressed"):
        load_pictures(tmp_path / "b.tar.gz", contract=RGB)


def test_damaged_archives_are_errors_that_name_them(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", a_png=png(0), a_cls=b"cat", b_png=png(1), b_cls=b"dog")
    whole = path.read_bytes()
    for content in (b"", b"no tar at all" * 99, whole[:700], b"\0" * 10240):
        path.write_bytes(content)
        with pytest.raises(PictureError, match="a.tar "):
            load_pictures(path, contract=RGB)


def test_a_hostile_archive_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, devices and folders are no pictures; names lead out of no folder; nothing is written."""
    (tmp_path / "secret.png").write_bytes(png(5))
    monkeypatch.chdir(tmp_path)
    with tarfile.open("a.tar", "w") as archive:
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="secret.png")
        add(archive, "hard.png", b"", type=tarfile.LNKTYPE, linkname="secret.png")
        add(archive, "pipe.png", b"", type=tarfile.FIFOTYPE)
        add(archive, "disk.png", b"", type=tarfile.BLKTYPE)
        add(archive, "._a.png", png(4))
        add(archive, "/../../tmp/./x\x1b[2J.png", png(0))
        add(archive, "/../../tmp/./x\x1b[2J.cls", b"cat")
    before = sorted(tmp_path.rglob("*"))
    found = load_pictures("a.tar", contract=RGB)
    assert found.ids == [r"tmp/x\x1b[2J.png"]
    assert sorted(tmp_path.rglob("*")) == before


def forged(kind: bytes, size: int) -> bytes:
    """A header that promises so many bytes."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_promises_gigabytes_is_not_believed(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(forged(kind, 1 << 33))
    with pytest.raises(PictureError, match="a.tar cannot be read as a tar file: a header in it is too long"):
        read_shards([tmp_path / "a.tar"])


def test_a_member_that_promises_more_than_there_is(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(member.tobuf() + png(0) + bytes(10240))
    with pytest.raises(PictureError, match="a.tar is truncated: it ends within a.png"):
        read_shards([tmp_path / "a.tar"])


def test_pictures_in_archives_meet_the_limits_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb, a truncated one, a text file and an empty one: each is named with its reason, as a file would be."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    stream = io.BytesIO()
    Image.new("L", (20, 20)).save(stream, "PNG")
    path = shard(
        tmp_path / "a.tar", a_png=stream.getvalue(), b_png=png(1)[:-40], c_png=b"<html>", d_png=b"", e_png=png(0)
    )
    with pytest.warns(UserWarning, match="4 pictures were left out, 1 remain"):
        found = load_pictures(path, contract=RGB, need_labels=False, on_error="skip", n_jobs=1)
    reasons = dict(found.skipped)
    assert "over-large" in reasons["a.png"]
    assert "truncated" in reasons["b.png"]
    assert "web page" in reasons["c.png"]
    assert "0 bytes" in reasons["d.png"]
    with pytest.raises(PictureError, match="4 of 5 pictures cannot be read"):
        load_pictures(path, contract=RGB, need_labels=False, n_jobs=1)
