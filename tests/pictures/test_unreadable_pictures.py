"""Picture files that cannot be read: each gets a reason, none escapes as another error."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from picture_cases import SUFFIXES
from PIL import Image, ImageFile

from tangentune.errors import InputError, PictureError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import prepare_picture, try_decode
from tangentune.pictures.load import load_pictures

RGB = DataContract(input_size=(3, 8, 8))


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_cut_files_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(len(data) * share))])
    assert re.fullmatch("(it|the file) is .+", str(try_decode(path, RGB)))
    with pytest.raises(PictureError, match=rf"Cannot read picture .*cut\.{suffix}: (it|the file) is .+"):
        load_pictures([path], ["a"], contract=RGB)


def test_reasons_say_what_is_wrong(tmp_path: Path) -> None:
    def reason(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        result = try_decode(tmp_path / name, RGB)
        assert isinstance(result, str)
        return result

    assert reason("none.jpg") == "the file does not exist"
    assert reason("empty.jpg", b"") == "the file is empty (0 bytes)"
    assert reason("text.jpg", b"hello, this is no picture at all") == "it is not a picture in a known format"
    assert "git lfs pull" in reason("lfs.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "web page" in reason("page.jpg", b"\n<!DOCTYPE html><html>404</html>")
    assert "pip install pillow-heif" in reason("phone.jpg", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    assert "known format" in reason("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.jpg").mkdir()
    assert reason("folder.jpg") == "it is a folder, not a picture"
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert reason("dangling.jpg") == "it is a symbolic link to a file that does not exist"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "leads back to itself" in reason("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    assert reason("pipe.jpg") == "it is not a regular file"
    assert try_decode("a\0b.jpg", RGB) == "its name is not a possible file name"


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("head", [b"\xff\xd8\xff", b"\x89PN", b"GIF", b"BM6", b"II*", b"RIF", b"P6\n", b"\0\0\0"])
def test_files_of_a_few_bytes_have_a_reason(tmp_path: Path, head: bytes, length: int) -> None:
    for suffix in ("jpg", "tga", "tif"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(head[:length])
        assert re.fullmatch("(it|the file) is .+", str(try_decode(path, RGB)))


def test_a_diagnosis_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError

    (tmp_path / "a.jpg").write_bytes(b"no picture at all")
    monkeypatch.setattr("tangentune.pictures.unreadable._what_it_is", fail)  # the file may have gone meanwhile
    assert try_decode(tmp_path / "a.jpg", RGB) == "it is damaged (UnidentifiedImageError)"


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "bomb.png")
    for limit in (1000, 100):  # Pillow warns up to twice the limit, and raises beyond
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(PictureError, match=rf"bomb\.png: it is over-large \(1200 pixels.*{limit}"):
            load_pictures([tmp_path / "bomb.png"], ["a"], contract=RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    pixels = try_decode(tmp_path / "bomb.png", RGB)
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (3, 8, 8)


def test_users_truncation_setting_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    assert try_decode(tmp_path / "a.jpg", RGB) == "the file is truncated"
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert not isinstance(try_decode(tmp_path / "a.jpg", RGB), str)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_random_damage_never_escapes(tmp_path: Path, suffix: str) -> None:
    """Whatever bytes are changed, the answer is a picture of the right size or a reason."""
    path, draw = tmp_path / f"a.{suffix}", random.Random(0)
    Image.fromarray(noise(24, 16)).save(path)
    good, reasons = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(min(len(damaged), 400))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        result = try_decode(path, RGB)
        if isinstance(result, str):
            reasons += 1
        else:
            assert result.shape == (3, 8, 8)
    assert reasons > 0


def test_contracts_that_are_not_for_pictures() -> None:
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match="takes no pictures"):
        prepare_picture(picture, DataContract(input_size=None))
    with pytest.raises(InputError, match="takes 5 channels"):
        prepare_picture(picture, DataContract(input_size=(5, 8, 8)))
    with pytest.raises(InputError, match=r"'cubic'; use one of nearest, bilinear, bicubic, lanczos"):
        prepare_picture(picture, DataContract(input_size=(3, 8, 8), interpolation="cubic"))
    with pytest.raises(InputError, match="crop is 1.5"):
        prepare_picture(picture, DataContract(input_size=(3, 8, 8), crop=1.5))
