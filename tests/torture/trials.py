"""Trials of a fault run: each takes random numbers and an empty folder, counts its outcomes, or fails with a sentence.

What must hold: no traceback, no hanging, one sentence for a mistake; a model is the old one or the new one, whole; and
once an edit says that it is done, nothing of a forgotten picture is in the model's directory or beside it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from cli_cases import folder_of, small
from forging import reseal, with_arrays
from killing import child, dying, seen, wait
from PIL import Image
from small import FIXED, pictures

import tangentune.estimators.saving
import tangentune.networks.backbone
from tangentune import Pictures, TangentClassifier
from tangentune.cli.app import main
from tangentune.errors import TangentuneError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import load_pictures

N = 16
X, Y = pictures(30)
NAMES = [f"ward-{i % 3}/patient-{7919 * (i + 3):06d}.png" for i in range(N)]
SECRET, PIXELS = NAMES[7], X[7].tobytes()[:64]
CHOICES = ["--damping", "1", "--body-scale", "1", "--metric-power", "0", "--normalize", "yes", "--n-jobs", "1"]
SECONDS = 60  # after which a command hangs
Outcomes = Counter[str]


class Failed(Exception):
    """What should not have happened."""


@dataclass(frozen=True)
class Kind:
    """A kind of trials, and how many cases a whole run tries."""

    trial: Callable[[Random, Path], Outcomes]
    cases: int
    at_once: int = 1


# -- damaged pictures --------------------------------------------------------------------------------------------------


@cache
def samples() -> list[tuple[str, bytes]]:
    """Pictures in many formats and modes, with their endings."""
    found = []
    wide = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"):
        image = Image.fromarray(wide).convert("L" if mode == "I;16" else mode)
        image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image
        for name in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
            stream = io.BytesIO()
            try:
                image.save(stream, name)
            except (OSError, ValueError, KeyError):  # the format has not this mode
                continue
            found.append((f".{name}", stream.getvalue()))
    return found


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes from some place on changed, cut, put in, taken out, or mixed with those of another picture."""
    start, length = rng.randrange(len(data)), rng.choice((1, 1, 4, 64, 3000))
    rest, share = data[start:], length / len(data)
    ways: dict[str, Callable[[], bytes]] = {
        "flip": lambda: bytes(byte ^ 1 << rng.randrange(8) if rng.random() < share else byte for byte in rest),
        "cut": lambda: b"",
        "insert": lambda: rng.randbytes(length) + rest,
        "drop": lambda: rest[length:],
        "splice": lambda: rng.choice(samples())[1][start:],
        "blank": lambda: bytes([rng.choice((0, 255))]) * length + rest[length:],
    }
    return data[:start] + ways[rng.choice(sorted(ways))]()


def damaged_pictures(rng: Random, place: Path) -> Outcomes:
    """A folder of twenty damaged pictures is read, and the unreadable ones are left out with a reason."""
    for i in range(20):
        ending, data = rng.choice(samples())
        (place / f"{i}{rng.choice((ending, ending, '.png'))}").write_bytes(damaged(rng, data))
    try:
        loaded = load_pictures(place, contract=DataContract((3, 16, 16)), on_error="skip", need_labels=False, n_jobs=1)
    except TangentuneError as error:
        _one_sentence(str(error))
        return Outcomes(refused=20)
    if loaded.pixels.shape[1:] != (3, 16, 16) or len(loaded) + len(loaded.skipped) != 20:
        raise Failed(f"{len(loaded)} of shape {tuple(loaded.pixels.shape)} and {len(loaded.skipped)} left out")
    for _, reason in loaded.skipped:
        _one_sentence(reason)
    return Outcomes(read=len(loaded), skipped=len(loaded.skipped))


# -- damaged models ----------------------------------------------------------------------------------------------------


@cache
def template() -> Path:
    """A saved model, pictures to add and pictures to fit, which trials copy."""
    import atexit
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = Pictures(torch.from_numpy(X[:N]), Y[:N], NAMES)
    TangentClassifier(small(), **FIXED).fit(source).save_pretrained(folder / "models" / "m")
    folder_of(folder / "new", [20, 22], [str(Y[20]), str(Y[22])])
    folder_of(folder / "all", list(range(8, 20)), [str(y) for y in Y[8:20]])
    return folder


def model_in(place: Path) -> Path:
    shutil.copytree(template() / "models", place / "models")
    return place / "models" / "m"


def damaged_model(rng: Random, place: Path) -> Outcomes:
    """Files changed by accident: refused, or what was damaged does not count."""
    model = model_in(place)
    file = rng.choice(sorted(model.iterdir()))
    if rng.random() < 0.1:
        file.unlink()
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))
    loaded = _load(model)
    if loaded is None:
        return Outcomes(refused=1)
    if not np.array_equal(loaded.decision_function(X[20:24]), _answers()):
        raise Failed(f"damage to {file.name} changed the answers")
    return Outcomes(same=1)


VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**400, 1e308, -0.5, "", "../x", "<U400000000", "x" * 9999, [], [[]], {}, {"a": 1}, [None]
)  # fmt: skip


def forged_model(rng: Random, place: Path) -> Outcomes:
    """Settings or arrays changed, and the checksums too: refused, or it is a model that answers and can be edited."""
    model = model_in(place)
    config = json.loads((model / "config.json").read_text())
    if rng.random() < 0.7:
        places = [one for one in _places(config) if one[0] != "config_sha256"]
        *inside, last = rng.choice(places)
        target = config
        for name in inside:
            target = target[name]
        if rng.random() < 0.2:
            del target[last]
        else:
            target[last] = rng.choice(VALUES)
        reseal(model, config)
    else:
        with_arrays(model, lambda arrays: _forge(rng, arrays), rng.choice(("tensors", "pictures")))
    loaded = _load(model)
    if loaded is None:
        return Outcomes(refused=1)
    if not np.isfinite(loaded.decision_function(X[20:24])).all():
        raise Failed("a forged model answers NaN")
    try:
        loaded.forget([loaded.ids_[0]]).save_pretrained(place / "again")
    except TangentuneError as error:
        _one_sentence(str(error))
    return Outcomes(answers=1)


def _places(config: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a document."""
    if not isinstance(config, dict | list):
        return []
    inside = config.items() if isinstance(config, dict) else enumerate(config)
    return [place for key, value in inside for place in ((*before, key), *_places(value, (*before, key)))]


def _forge(rng: Random, arrays: dict[str, torch.Tensor]) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    ways: dict[str, Callable[[], Any]] = {
        "gone": lambda: None, "NaN": lambda: torch.full_like(array.double(), torch.nan), "shorter": lambda: array[1:],
        "deeper": lambda: array[None], "other": lambda: array.to(rng.choice((torch.float16, torch.int8, torch.bool))),
        "longer": lambda: torch.cat([array, array]), "zero": lambda: torch.zeros_like(array),
    }  # fmt: skip
    if (made := ways[rng.choice(sorted(ways))]()) is None:
        del arrays[name]
    else:
        arrays[name] = made


@cache
def _answers() -> Any:
    return TangentClassifier.from_pretrained(template() / "models" / "m", backbone=small()).decision_function(X[20:24])


def _load(model: Path) -> TangentClassifier | None:
    tangentune.estimators.saving.load_backbone = small
    try:
        return TangentClassifier.from_pretrained(model)
    except TangentuneError as error:
        _one_sentence(str(error))
        return None


def _one_sentence(text: str) -> None:
    if not text.strip() or "\n" in text or "Traceback" in text or len(text) > 3000:
        raise Failed(f"not one sentence: {text[:300]!r}")


# -- commands that are killed, meet one another, or have no room -------------------------------------------------------


def command(*arguments: object) -> int:
    """The command line with the small network, in a child."""
    tangentune.estimators.saving.load_backbone = tangentune.networks.backbone.load_backbone = small
    return main([str(one) for one in arguments])


def any_command(rng: Random, model: Path) -> list[object]:
    """Some command that writes; pages outside go where nobody looks for what was forgotten."""
    pages, yard = model.parents[1] / "pages.html", template()
    edits = [["forget", model, rng.choice(NAMES)], ["relabel", model, rng.choice(NAMES), rng.randrange(4)]] * 2
    edits += [["add", model, yard / "new", "--n-jobs", "1"], ["forget", model, rng.choice(NAMES), "--strict"]]
    others = [["report", model], ["suspects", model, "--out", pages], ["fit", yard / "all", "--out", model, *CHOICES]]
    return rng.choice(edits + others)


def check_model(model: Path) -> None:
    """The model is whole; forgetting works, clears away whatever was left, and leaves nothing of the picture."""
    told = model.parents[1] / "check.txt"
    held = json.loads((model / "config.json").read_text())["fitted"]["ids_"]
    code = wait(child(lambda: command("forget", model, SECRET if SECRET in held else held[0]), told))
    if code:
        raise Failed(f"the next edit ended with {code}: {told.read_text()[-300:]!r}")
    if left := seen(model.parent, SECRET.encode(), PIXELS):
        raise Failed(f"what was forgotten is in {left}")
    if others := [path.name for path in model.parent.iterdir() if path.name.startswith(".")]:
        raise Failed(f"{others} lie beside the model")


def ended(number: int, told: Path) -> int:
    """The exit code of a command, which says one sentence if it is a mistake, and does not hang."""
    code, text = wait(number, SECONDS), told.read_text(errors="replace")
    if "Traceback" in text or code not in (0, 2, 9, 130, -1, -2, -9, -15, 129, 143):
        raise Failed(f"a command ended with {code}: {text[-300:]!r}")
    if code == 2 and sum(line.startswith("error: ") for line in text.splitlines()) != 1:
        raise Failed(f"not one sentence: {text[-300:]!r}")
    return code


def killed(rng: Random, place: Path) -> Outcomes:
    """A command is killed, at a step on the disk or at any moment."""
    model, told = model_in(place), place / "told.txt"
    arguments = any_command(rng, model)
    if rng.random() < 0.6:
        code = ended(child(dying(lambda: command(*arguments), rng.randrange(1, 70), place), told), told)
    else:
        number = child(lambda: command(*arguments), told)
        time.sleep(rng.random() * 0.5)
        os.kill(number, signal.SIGKILL)
        code = ended(number, told)
    check_model(model)
    return Outcomes({f"{arguments[0]} {'killed' if code in (9, -9) else 'done'}": 1})


def signalled(rng: Random, place: Path) -> Outcomes:
    """A command is asked to end."""
    model, told = model_in(place), place / "told.txt"
    number, name = child(lambda: command(*any_command(rng, model)), told), rng.choice(("SIGTERM", "SIGHUP", "SIGINT"))
    time.sleep(0.02 + rng.random() * 0.4)
    os.kill(number, getattr(signal, name))
    code = ended(number, told)
    check_model(model)
    return Outcomes({f"{name} {'done' if code in (0, 2) else 'ended'}": 1})


def raced(rng: Random, place: Path) -> Outcomes:
    """Two or four writers at once: each change that was reported is there."""
    model, names = model_in(place), rng.sample(NAMES, 4)
    writers: list[list[object]] = [
        ["forget", model, names[0]], ["relabel", model, names[1], "3"], ["report", model], ["forget", model, names[2]],
        ["add", model, template() / "new", "--n-jobs", "1"], ["forget", model, names[3]],
    ]  # fmt: skip
    chosen = rng.sample(writers, rng.choice((2, 4)))
    running = [(one, child(lambda one=one: command(*one), place / f"{i}.txt")) for i, one in enumerate(chosen)]
    codes = [ended(number, place / f"{i}.txt") for i, (_, number) in enumerate(running)]
    config = json.loads((model / "config.json").read_text())
    labels = dict(zip(config["fitted"]["ids_"], config["targets"]["values"], strict=True))
    done = [one for one, code in zip(chosen, codes, strict=True) if code == 0]
    lost = [one[0] for one in done if (one[0] == "forget" and one[2] in labels)]
    lost += [one[0] for one in done if one[0] == "relabel" and labels.get(str(one[2])) != 3]
    lost += [one[0] for one in done if one[0] == "add" and len(labels.keys() - set(NAMES)) != 2]
    if lost or config["edits"]["lines"] != sum(one[0] != "report" for one in done):
        raise Failed(f"{lost or 'an edit'} is lost of {[one[0] for one in done]}")
    if (model / "report.html").exists():
        page = (model / "report.html").read_text(encoding="utf-8")
        if gone := [one[2] for one in done if one[0] == "forget" and str(one[2]) in page]:
            raise Failed(f"the page names {gone}")
    check_model(model)
    return Outcomes(done=len(done), refused=len(codes) - len(done))


def no_room(rng: Random, place: Path) -> Outcomes:
    """The disk is full at some byte: as it was, or done."""
    model, told = model_in(place), place / "told.txt"
    arguments, most = any_command(rng, model), rng.randrange(2000, 60000)

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return command(*arguments)

    code = ended(child(limited, told), told)
    if any(path.name.startswith(".") for path in model.parent.iterdir()):
        raise Failed("something lies beside the model")
    check_model(model)
    return Outcomes(done=code == 0, refused=code == 2)


# -- names and budgets -------------------------------------------------------------------------------------------------

PIECES = (
    "<script>alert(1)</script>", "'\"><img src=x onerror=a()>", "\x1b[31m", "\u202e", "\r", "\n", "{{7*7}}", "a" * 90,
    "*", "-rf", "%s", "$(id)", "é", "猫", " ", "..", "&amp;", "\udcff", ";", "`", "\t", "[link](http://x)",
)  # fmt: skip


def hostile_names(rng: Random, place: Path) -> Outcomes:
    """Classes, pictures and models with odd names: fitted and shown, nothing of them active."""
    words = ["".join(rng.sample(PIECES, rng.randrange(1, 4))).replace("/", "")[:120] + str(i) for i in range(4)]
    for i in range(8):
        folder = place / "p" / words[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i].transpose(1, 2, 0)).save(folder / f"{words[2]}{i}.png")
    model, told = place / "models" / words[3], place / "told.txt"
    for arguments in (["fit", "--out", model, *CHOICES, "--", place / "p"], ["report", model], ["suspects", model]):
        if code := ended(child(lambda a=arguments: command(*a), told), told):
            if arguments[0] == "fit":  # a class of hidden files, or two that look alike
                return Outcomes(refused=1)
            raise Failed(f"{arguments[0]} of {words} ended with {code}: {told.read_text(errors='replace')[-300:]!r}")
        raw = set(told.read_text(errors="replace")) & {chr(i) for i in range(32) if chr(i) not in "\n\r\t"}
        if raw or "\u202e" in told.read_text(errors="replace"):
            raise Failed(f"{arguments[0]} prints control characters {raw} of a name")
    page = (model / "report.html").read_text(encoding="utf-8")
    if "<script" in page or "<img src=x" in page:
        raise Failed("a page with a name that is active")
    return Outcomes(shown=1)


def small_budgets(rng: Random, place: Path) -> Outcomes:
    """Any memory budget: a fit, or a sentence."""
    told, budget = place / "told.txt", f"{rng.choice((1, 3, 30, 300, 3000))}{rng.choice(('KiB', 'MiB'))}"
    arguments = ["fit", template() / "all", "--out", place / "m", *CHOICES, "--memory-budget", budget]
    code = ended(child(lambda: command(*arguments), told), told)
    if (place / "m").exists() != (code == 0):
        raise Failed(f"exit code {code}, and the model {'is' if code else 'is not'} there")
    return Outcomes(fitted=code == 0, refused=code == 2)


KINDS = {
    "damaged pictures": Kind(damaged_pictures, 20_000, 20), "damaged models": Kind(damaged_model, 1_000),
    "forged models": Kind(forged_model, 1_000), "kills": Kind(killed, 500), "races": Kind(raced, 200),
    "signals": Kind(signalled, 100), "full disks": Kind(no_room, 200), "hostile names": Kind(hostile_names, 400),
    "small budgets": Kind(small_budgets, 50),
}  # fmt: skip
