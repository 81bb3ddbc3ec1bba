"""Files and folders that are not read: what may be a picture is told and counted, and no folder is read twice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from picture_cases import SUFFIXES, class_folder, colours
from PIL import Image

from tangentune.errors import InputError, PictureError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import find_files
from tangentune.pictures.load import load_pictures
from tangentune.pictures.names import looks_like_picture

CONTRACT = DataContract(input_size=(3, 8, 8))
SIDE_FILES = (
    "a.txt",
    "labels.json",
    "labels.csv",
    "Thumbs.db",
    ".DS_Store",
    "desktop.ini",
    "._a.jpg",
    "README",
    "x.dat",
)


def save(path: Path, form: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours(1)[0]).save(path, form)


@pytest.mark.parametrize("need_labels", [True, False])
def test_files_that_may_be_pictures_are_told_by_ending(tmp_path: Path, need_labels: bool) -> None:
    root = class_folder(tmp_path / "set")
    for name in SIDE_FILES:
        (root / "cat" / name).write_bytes(b"hello")
    assert find_files(root, need_labels).notes == []
    for name in ("2", "3.jpg?size=large", "4.jpg.1", "5.PNG_", "6"):
        save(root / "cat" / name)
    (root / "dog" / "6.jxl").write_bytes(b"whatever is in it")
    save(root / "loose")
    (root / "dog" / "empty").write_bytes(b"")
    os.mkfifo(root / "dog" / "pipe")  # opening it would wait for ever
    files = find_files(root, need_labels)
    (note,) = files.notes
    assert len(files.pictures) == 6
    assert "may be pictures are left out because of their endings (3 without ending, " in note
    assert "1 .jpg?size=large" in note
    assert "1 .1" in note
    assert note.count("\n") == 0
    with pytest.warns(UserWarning, match="may be pictures are left out"):
        load_pictures(root, contract=CONTRACT, need_labels=need_labels)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_are_known_by_their_first_bytes(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(colours(1, 16)[0]).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a")
    assert looks_like_picture(tmp_path / "a")
    assert load_pictures(tmp_path / "a", contract=CONTRACT, need_labels=False).ids == ["a"]  # named by hand, it is read


def test_endings_of_many_other_files_are_not_looked_at_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, looked = class_folder(tmp_path / "set"), []
    for i in range(150):
        (root / "cat" / f"{i}.dat").write_bytes(b"hello")
        save(root / "dog" / f"{i}.jpg_")

    def look(path: str) -> bool:
        looked.append(path)
        return looks_like_picture(path)

    monkeypatch.setattr("tangentune.pictures.names.looks_like_picture", look)
    (note,) = find_files(root).notes
    assert "(150 .jpg_; " in note
    assert len(looked) == 250


def test_other_files_are_not_taken_for_pictures(tmp_path: Path) -> None:
    for content in (b"", b"a", b"BMW drivers, all of them", b"P1 is a name", b"PK\x03\x04", b"\x7fELF", b"%PDF-1.4"):
        (tmp_path / "a").write_bytes(content)
        assert looks_like_picture(tmp_path / "a") == content.startswith(b"P1 ")
    assert not looks_like_picture(tmp_path)
    assert not looks_like_picture(tmp_path / "nothing")


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    names = "abcdefgh"
    for name in names:
        save(tmp_path / name / "1.png")
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    for need_labels in (True, False):
        start = time.perf_counter()
        files = find_files(tmp_path, need_labels)
        assert time.perf_counter() - start < 2
        assert files.ids == [f"{name}/1.png" for name in names]
        assert files.lost == []
        (note,) = files.notes
        assert note.startswith("Links to folders that are read already are left out (56): a/b, a/c, ")


def test_a_link_takes_no_picture_from_a_real_folder_and_an_outer_folder_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "set/b/1.png")
    save(tmp_path / "store/2.png")
    (tmp_path / "set/a").mkdir()
    (tmp_path / "set/a/first").symlink_to(tmp_path / "store")
    (tmp_path / "set/a/other").symlink_to(tmp_path / "set/b")
    (tmp_path / "set/c").symlink_to(tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for root in (tmp_path / "set", tmp_path / "link"):
        for need_labels in (True, False):
            files = find_files(root, need_labels)
            assert files.ids == ["a/first/2.png", "b/1.png"]
            assert files.notes == ["Links to folders that are read already are left out (2): a/other, c."]


@pytest.mark.parametrize("name", ["~nosuch/x.jpg", "a" * 5000, "a\0b.jpg", "d/" * 3000])
def test_names_that_the_system_refuses_are_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="does not exist|File name too long") as caught:
        load_pictures(name, contract=CONTRACT, need_labels=False)
    assert len(str(caught.value)) < 200
    with pytest.raises(PictureError, match="Cannot read picture "):
        load_pictures([name], [0], contract=CONTRACT)


def test_pictures_in_the_tools_of_scikit_learn_are_one_sentence(tmp_path: Path) -> None:
    pictures = load_pictures(class_folder(tmp_path), contract=CONTRACT)
    assert repr(pictures) == "Pictures(6 of 3 x 8 x 8, labelled)"
    with pytest.raises(InputError, match=r"give such a tool pictures\.pixels\.numpy\(\) and pictures\.labels"):
        np.asarray(pictures)
