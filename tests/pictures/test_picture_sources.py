"""Folders, tables and lists as users have them: order, names, layout mistakes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tangentune.errors import InputError, PictureError
from tangentune.pictures.files import find_files, from_paths
from tangentune.pictures.names import readable


def tree(root: Path, *names: str) -> Path:
    """Create small pictures (and, for other endings, text files) below `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".tif", ".bmp", ".webp"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_bytes(b"text")
    return root


def test_class_folders_in_fixed_order_without_clutter(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "b/deep/er/1.tif", "a/Z.JPG", "a/a.webp", "b/x.bmp"]
    clutter = [
        "a/Thumbs.db",
        "a/.DS_Store",
        "a/._a.jpg",
        "b/notes.txt",
        ".git/x.jpg",
        "__MACOSX/a/z.jpg",
        "readme.md",
    ]
    tree(tmp_path, *names, *clutter, "a/@eaDir/small.jpg", "a/.ipynb_checkpoints/a.jpg")
    files = find_files(tmp_path)
    assert files.ids == ["a/Z.JPG", "a/a.webp", "b/10.jpg", "b/2.PNG", "b/deep/er/1.tif", "b/x.bmp"]
    assert files.labels == ["a", "a", "b", "b", "b", "b"]
    assert files.pictures == [str(tmp_path / name) for name in files.ids]
    assert files.notes == []
    assert files.lost == []
    assert find_files(str(tmp_path) + os.sep).ids == files.ids


def test_flat_folder_without_labels_takes_everything_below(tmp_path: Path) -> None:
    tree(tmp_path, "2.jpg", "1.jpg", "sub/3.jpg", "notes.txt")
    files = find_files(tmp_path, need_labels=False)
    assert files.ids == ["1.jpg", "2.jpg", "sub/3.jpg"]
    assert files.labels is None


def test_notes_name_empty_classes_and_loose_pictures(tmp_path: Path) -> None:
    tree(tmp_path, "cat/1.jpg", "dog/1.jpg", "raw/1.dng", "raw/2.dng", "raw/x.txt", "cover.jpg")
    (tmp_path / "void").mkdir()
    empty, loose = find_files(tmp_path).notes
    assert "without a picture are left out: raw (it holds 2 .dng, 1 .txt), void." in empty
    assert loose.endswith("are left out (1): cover.jpg.")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.jpg", "b.jpg"], "holds 2 pictures but no class folders; put each class's"),
        (["notes.txt"], "holds neither class folders nor pictures, only notes.txt"),
        ([], "is empty"),
        (["cat/a.txt", "dog/b.txt"], "None of the class folders in"),
        (["train/cat/1.jpg", "test/cat/1.jpg"], "/train."),
        (["train/cat/1.jpg", "test/cat/1.jpg"], "holds the splits test, train, not classes; give one of them"),
        (["train/cat/1.jpg", "test/cat/1.jpg", "docs/a.md"], "holds the splits test, train, not classes"),
        (["train/cat/1.jpg", "test/cat/1.jpg", "docs/a.jpg"], "holds the splits test, train, not classes"),
    ],
)
def test_layout_mistakes_get_one_clear_sentence(tmp_path: Path, names: list[str], sentence: str) -> None:
    tree(tmp_path, *names)
    with pytest.raises(PictureError) as caught:
        find_files(tmp_path)
    assert sentence in str(caught.value)
    assert readable(tmp_path) in str(caught.value)


def test_train_and_test_are_classes_when_pictures_lie_in_them(tmp_path: Path) -> None:
    files = find_files(tree(tmp_path, "train/1.jpg", "test/1.jpg", "docs/a.md"))
    assert files.labels == ["test", "train"]
    assert "are named like splits (test, train); make sure" in files.notes[0]
    assert find_files(tree(tmp_path / "vehicles", "train/old/1.jpg", "bus/1.jpg")).notes == []


def test_folder_around_the_class_folders_is_hinted_at(tmp_path: Path) -> None:
    tree(tmp_path, "flowers/rose/1.jpg", "flowers/tulip/1.jpg")
    files = find_files(tmp_path)
    assert files.labels == ["flowers", "flowers"]
    (note,) = files.notes
    assert note.startswith(f"All pictures lie in {readable(tmp_path)}/flowers; if the 2 folders in it are")


def test_single_class_folder_is_reported_as_it_is(tmp_path: Path) -> None:
    files = find_files(tree(tmp_path, "cat/1.jpg", "cat/2.jpg"))
    assert files.labels == ["cat", "cat"]
    assert files.notes == []


def test_missing_or_unsuitable_paths(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="nowhere does not exist"):
        find_files(tmp_path / "nowhere")
    tree(tmp_path, "weights.bin", "one.jpg")
    with pytest.raises(PictureError, match=r"weights\.bin is neither a folder"):
        find_files(tmp_path / "weights.bin")
    assert find_files(tmp_path / "one.jpg").ids == ["one.jpg"]
    with pytest.raises(PictureError, match=r"holds no picture \(it holds 1 \.md\)"):
        find_files(tree(tmp_path / "docs", "a.md"), need_labels=False)


def test_symbolic_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    tree(tmp_path, "store/1.jpg", "data/cat/1.jpg")
    (tmp_path / "data/dog").symlink_to(tmp_path / "store")
    (tmp_path / "data/cat/again").symlink_to(tmp_path / "data")
    (tmp_path / "data/cow").symlink_to(tmp_path / "data")
    for need_labels in (True, False):
        files = find_files(tmp_path / "data", need_labels)
        assert files.ids == ["cat/1.jpg", "dog/1.jpg"]
        reason = "it is a symbolic link back to a folder that contains it"
        assert files.lost == [("cat/again", reason), ("cow", reason)]


def test_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "cat/1.jpg", "dog/1.jpg")
    real = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:  # as for a user who may not enter
        if folder.endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_files(tmp_path).lost == [("dog", "the folder cannot be opened (Permission denied)")]
    with pytest.raises(PictureError, match=r"dog cannot be opened \(Permission denied\)"):
        find_files(tmp_path / "dog")


def test_unicode_and_undecodable_names(tmp_path: Path) -> None:
    tree(tmp_path, "Möwe/日本 1.jpg", "Z/😀.png")
    if sys.platform == "linux":  # elsewhere the file system refuses such names
        folder = os.fsencode(tmp_path) + b"/caf\xe9"
        os.mkdir(folder)
        os.rename(os.fsencode(tmp_path / "Z/😀.png"), folder + b"/\xff.png")
        (tmp_path / "Z").rmdir()
        files = find_files(tmp_path)
        assert files.ids == ["Möwe/日本 1.jpg", "caf\\xe9/\\xff.png"]
        assert files.labels == ["Möwe", "caf\\xe9"]
        assert os.path.exists(files.pictures[1])
        assert from_paths(files.pictures).ids[1].encode("utf-8").endswith(b"\\xff.png")
    else:
        assert find_files(tmp_path).ids == ["Möwe/日本 1.jpg", "Z/😀.png"]
    assert readable("a\x1b[31m\n\u202egpj.exe") == "a\\x1b[31m\\n\\u202egpj.exe"
    assert readable("e\u0301\u200d👩\u200d👧 日本") == "e\u0301\u200d👩\u200d👧 日本"
    assert readable("lone \ud800") == "lone \\xed\\xa0\\x80"


# ---------------------------------------------------------------- tables and lists


@pytest.mark.parametrize(
    "text",
    [
        "path,label\npics/1.jpg,cat\npics/2.jpg,dog\n",
        "\ufeffLabel;Path;note\r\ncat;pics/1.jpg;x\r\n\r\ndog;pics\\2.jpg;\r\n",
        'id\tpath\tlabel\n7\tpics/1.jpg\tcat\n8\t"pics/2.jpg"\t dog \n',
    ],
)
def test_tables_of_every_spreadsheet(tmp_path: Path, text: str) -> None:
    tree(tmp_path, "pics/1.jpg", "pics/2.jpg")
    (tmp_path / "t.csv").write_bytes(text.encode())
    files = find_files(tmp_path / "t.csv")
    assert files.pictures == [str(tmp_path / "pics/1.jpg"), str(tmp_path / "pics/2.jpg")]
    assert files.labels == ["cat", "dog"]
    assert files.ids[0] == "pics/1.jpg"


def test_table_without_labels_and_absolute_paths(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "Ä b,c.jpg")
    (tmp_path / "t.csv").write_text(f'path\n{tmp_path}/a.jpg\n"Ä b,c.jpg"\n', encoding="utf-8")
    files = find_files(tmp_path / "t.csv", need_labels=False)
    assert files.pictures == [f"{tmp_path}/a.jpg", str(tmp_path / "Ä b,c.jpg")]
    assert files.labels is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"thing,kind\na.jpg,cat\n", "must name the columns path and label; it names thing, kind."),
        (b"path\na.jpg\n", "must name the column label; it names path."),
        (b"", "it names nothing."),
        (b"path,label,Label\na.jpg,cat,dog\n", "names the column label 2 times; keep one."),
        (b"path,label\n", "lists no picture below its first line."),
        (b"path,label\na.jpg,cat\nb.jpg\n", "Line 3 of"),
        (b"path,label\n,cat\n", "has no path."),
        (b"path,label\nM\xf6we.jpg,cat\n", "is not UTF-8 text (see byte 12); save it as CSV UTF-8."),
        (b'path,label\n"a.jpg,cat\n', "cannot be read as a table"),
    ],
)
def test_table_mistakes(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(PictureError) as caught:
        find_files(tmp_path / "t.csv")
    assert sentence in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_list_of_paths_keeps_its_order() -> None:
    files = from_paths(["b.jpg", Path("x/a.jpg")])
    assert files.ids == ["b.jpg", "x/a.jpg"]
    with pytest.raises(InputError, match="Entry 1 of the list of paths is int"):
        from_paths(["a.jpg", 3])  # type: ignore[list-item]
