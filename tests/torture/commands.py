"""Commands that are killed, meet one another, have no room, are asked to end, or are given odd names and small budgets.

What must hold: no traceback, no hanging, one sentence for a mistake; a model is the old one or the new one, whole; and
once an edit says that it is done, nothing of a forgotten picture is in the model's directory or beside it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random

from cli_cases import small
from killing import alive, called, child, children, dying, seen, steps_of, threads, wait
from PIL import Image
from torture.common import (
    CHOICES,
    LABELS,
    NAMES,
    PIXELS,
    RARE,
    SECONDS,
    SECRET,
    Failed,
    N,
    Outcomes,
    X,
    command,
    commands,
    ended,
    model_in,
    template,
)

from tangentune import TangentClassifier
from tangentune.cli.run import run
from tangentune.methods.source_selection.manifest import read_manifest

Labels = dict[str, str]


def labels_of(model: Path) -> Labels:
    """The label of each picture that the model stands on."""
    config = json.loads((model / "config.json").read_text())
    return dict(zip(config["fitted"]["ids_"], config["targets"]["values"], strict=True))


def check_model(model: Path, *allowed: Labels) -> None:
    """The model is whole, and one of these; forgetting works, clears all away, and leaves nothing of the picture."""
    held, told = labels_of(model), model.parents[1] / "check.txt"
    if allowed and held not in allowed:
        raise Failed(f"it is neither the model before nor the one after: {sorted(held.items())}")
    code = wait(child(lambda: command("forget", model, SECRET if SECRET in held else next(iter(held))), told))
    if code:
        raise Failed(f"the next edit ended with {code}: {told.read_text()[-300:]!r}")
    gone = [SECRET.encode(), PIXELS, *([] if RARE in held.values() else [RARE.encode()])]
    if left := [*seen(model.parent, *gone), *seen(Path(tempfile.gettempdir()), *gone)]:
        raise Failed(f"what was forgotten is in {left}")
    if others := [path.name for path in model.parent.iterdir() if path.name.startswith(".")]:
        raise Failed(f"{others} lie beside the model")


def check_pages(pages: Path) -> None:
    """Pages and choices are whole, or not there."""
    for path in pages.glob("[!.]*"):
        if path.suffix == ".json":
            read_manifest(path)
        elif not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            raise Failed(f"{path.name} is not whole")


# -- kills -------------------------------------------------------------------------------------------------------------


@cache
def steps() -> dict[str, tuple[int, Labels]]:
    """Of each command that writes, undisturbed: how often it touches the disk, and the model that it leaves."""
    found = {}
    for name in commands(Path("a/b/c"), Path()):
        with tempfile.TemporaryDirectory(prefix="steps-") as folder:
            model = model_in(Path(folder))
            place = Path(folder)
            work = partial(command, *commands(model, template())[name])
            count = steps_of(work, place, place / "told.txt")
            found[name] = count, labels_of(model)
    return found


@cache
def every_step() -> list[tuple[str, int]]:
    """All places where a command can be killed."""
    found = [(name, step) for name, (count, _) in steps().items() for step in range(1, count + 1)]
    Random(0).shuffle(found)  # a share of them is of every command
    return found


def killed_at_a_step(number: int, place: Path) -> Outcomes:
    """A command is killed just before one of the steps that touch the disk, each in its turn."""
    name, step = every_step()[number % len(every_step())]
    model, told = model_in(place), place / "told.txt"
    code = ended(child(dying(lambda: command(*commands(model, template())[name]), step, place), told), told)
    return _after_a_kill(name, code, model)


def killed_any_time(number: int, place: Path) -> Outcomes:
    """A command is killed at any moment."""
    rng, model, told = Random(number), model_in(place), place / "told.txt"
    name, work = any_command(rng, model)
    running = child(work, told)
    time.sleep(rng.random() ** 2 * 0.6)
    os.kill(running, signal.SIGKILL)
    return _after_a_kill(name, ended(running, told), model)


def _after_a_kill(name: str, code: int, model: Path) -> Outcomes:
    after = steps()[name][1]
    check_pages(model.parents[1] / "pages")
    check_model(model, _before(), after)
    return Outcomes({f"{name} {'killed' if code in (9, -9) else 'done'}": 1})


@cache
def _before() -> Labels:
    return dict(zip(NAMES, LABELS[:N].tolist(), strict=True))


def any_command(rng: Random, model: Path) -> tuple[str, Callable[[], int]]:
    """Some command that writes, the edits more often."""
    names = [name for name in steps() for _ in range(3 if name.startswith(("forget", "relabel", "add")) else 1)]
    name = rng.choice(names)
    return name, lambda: command(*commands(model, template())[name])


# -- signals -----------------------------------------------------------------------------------------------------------

DECODERS_END = 5.0  # seconds after the process that started them, once they work


def signalled(number: int, place: Path) -> Outcomes:
    """A command is asked to end, or killed while other processes decode its pictures."""
    rng, model, told = Random(number), model_in(place), place / "told.txt"
    name = rng.choice(("SIGTERM", "SIGHUP", "SIGINT"))
    if number % 4:
        running = child(any_command(rng, model)[1], told)
        time.sleep(0.02 + rng.random() * 0.4)
        decoders: list[int] = []
    else:
        name = rng.choice((name, "SIGKILL"))
        running = child(lambda: command("fit", many_pictures(), "--out", model, *CHOICES, "--n-jobs", "2"), told)
        decoders = _decoders(running, at_work=number % 8 == 0)
        time.sleep(rng.random())
    os.kill(running, getattr(signal, name))
    start, code = time.monotonic(), ended(running, told)
    allowed = DECODERS_END if number % 8 == 0 else SECONDS
    while any(map(alive, decoders)) and time.monotonic() - start < allowed:
        time.sleep(0.05)
    if left := sum(map(alive, decoders)):
        raise Failed(f"{left} decoders live {allowed} s after {name}")
    check_model(model)
    return Outcomes({f"{name} {'with decoders ' * bool(decoders)}{'done' if code in (0, 2) else 'ended'}": 1})


def _decoders(number: int, *, at_work: bool) -> list[int]:
    """The processes below a command, two decoders among them: as soon as they are there, or once they can work.

    None of a command that was done before they were seen, as happens on a busy machine.
    """
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if not alive(number):
            return []
        below = children(number)
        decoders = [one for one in below if "popen_loky" in called(one)]  # others keep account of shared memory
        working = all(threads(one) > 1 for one in decoders)  # the second thread looks for the parent
        if len(decoders) >= 2 and (working or not at_work):
            return below
        time.sleep(0.05)
    raise Failed("no decoder ever started")


@cache
def many_pictures() -> Path:
    """Names enough of one picture to keep decoders busy; made once, by the process whose copies try everything."""
    folder = template() / "many"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(X[0].transpose(1, 2, 0)).resize((300, 300)).save(folder / "a" / "0.png", compress_level=1)
    for i in range(1, 6000):
        os.link(folder / "a" / "0.png", folder / "ab"[i % 2] / f"{i}.png")
    return folder


# -- races -------------------------------------------------------------------------------------------------------------


def raced(number: int, place: Path) -> Outcomes:
    """Two or four writers at once: each change that was reported is there."""
    rng, model = Random(number), model_in(place)
    writers = _writers(rng, model)
    chosen = rng.sample(sorted(writers), rng.choice((2, 4)))
    running = [(name, child(writers[name][0], place / f"{name}.txt")) for name in chosen]
    codes = {name: ended(running, place / f"{name}.txt") for name, running in running}
    done, labels = [name for name, code in codes.items() if code == 0], labels_of(model)
    fits = not labels.keys() & set(NAMES)  # a new model took the place of this one, and of what was changed in it
    if lost := [name for name in done if not fits and not writers[name][1](labels)]:
        raise Failed(f"{lost} of {done} is lost")
    lines = json.loads((model / "config.json").read_text())["edits"]["lines"]
    if not fits and lines != sum(name not in ("report", "fit") for name in done):
        raise Failed(f"{lines} edits are recorded of {done}")
    if (model / "report.html").exists():
        page = (model / "report.html").read_text(encoding="utf-8")
        if gone := [name for name in done if "forget" in name and writers[name][2] in page]:
            raise Failed(f"the page names what {gone} took out")
    check_model(model)
    return Outcomes(done=len(done), refused=len(codes) - len(done), **{f"{len(chosen)} writers": 1})


def _writers(rng: Random, model: Path) -> dict[str, tuple[Callable[[], int], Callable[[Labels], bool], str]]:
    """Work, whether it shows in the labels of the pictures, and the picture that it is about."""
    one, two, three, four = rng.sample(NAMES, 4)
    yard = template()

    def by_hand() -> int:
        def work() -> None:
            held = TangentClassifier.from_pretrained(model, backbone=small())
            held.forget([four])
            held.save_pretrained(model)

        return run(work)

    found: dict[str, tuple[Callable[[], int], Callable[[Labels], bool], str]] = {
        "forget": (lambda: command("forget", model, one), lambda labels: one not in labels, one),
        "forget another": (lambda: command("forget", model, two), lambda labels: two not in labels, two),
        "forget by hand": (by_hand, lambda labels: four not in labels, four),
        "relabel": (
            lambda: command("relabel", model, three, RARE),
            lambda labels: labels.get(three) == RARE,
            three,
        ),
        "add": (
            lambda: command("add", model, yard / "new", "--n-jobs", "1"),
            lambda labels: len(labels.keys() - set(NAMES)) == 2,
            "",
        ),
        "report": (lambda: command("report", model), lambda _: True, ""),
    }
    if rng.random() < 0.3:
        fit = commands(model, yard)["fit"]
        found["fit"] = lambda: command(*fit), lambda _: True, ""
    return found


# -- full disks --------------------------------------------------------------------------------------------------------


_PAGE, _PRIVATE, _REMOUNT, _OWN_MOUNTS = 4096, 0x44000, 32, 0x20000  # as Linux has them


def no_room(number: int, place: Path) -> Outcomes:
    """The disk is full at some byte, a real small disk where the system lets us have one: as it was, or done."""
    rng, told = Random(number), place / "told.txt"
    (place / "models").mkdir()
    used = sum(-(-file.stat().st_size // _PAGE) + 1 for file in (template() / "models").rglob("*")) * _PAGE
    disk = number % 2 == 0 and small_disk(place / "models", used + rng.randrange(2 * used))
    model, most = model_in(place), rng.randrange(2000, 60000)
    name, work = any_command(rng, model)

    def limited() -> int:
        if not disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return work()

    code = ended(child(limited, told), told)
    if any(path.name.startswith(".") for path in model.parent.iterdir()):
        raise Failed("something lies beside the model")
    check_pages(place / "pages")
    if disk:
        ctypes.CDLL(None).mount(None, os.fsencode(place / "models"), None, _REMOUNT, b"size=64m")
    check_model(model, _before(), steps()[name][1])
    return Outcomes({f"{'disk' if disk else 'limit'}, {'done' if code == 0 else 'refused'}": 1})


def small_disk(folder: Path, room: int) -> bool:
    """A disk of so many bytes at this folder, for this process and its children; False where that is not allowed."""
    try:
        library = ctypes.CDLL(None)
        return (
            library.unshare(_OWN_MOUNTS) == 0
            and library.mount(b"none", b"/", None, _PRIVATE, None) == 0
            and library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={room}".encode()) == 0
        )
    except AttributeError:  # no such system call
        return False


# -- names and budgets -------------------------------------------------------------------------------------------------

PIECES = (
    "<script>alert(1)</script>", "'\"><img src=x onerror=a()>", "\x1b[31m", "\u202e", "\r", "\n", "{{7*7}}", "a" * 90,
    "*", "-rf", "%s", "$(id)", "é", "猫", " ", "..", "&amp;", "\udcff", ";", "`", "\t", "[link](http://x)", "\x9b2J",
    "\u2066", "~", "#", "\\", "https://x", "=1+1",
)  # fmt: skip
RAW = {chr(i) for i in (*range(32), *range(127, 160), 0x202E, 0x2066) if chr(i) not in "\n\r\t"}


def hostile_names(number: int, place: Path) -> Outcomes:
    """Classes, pictures and models with odd names: fitted, shown and forgotten, nothing of them active."""
    rng = Random(number)
    words = ["".join(rng.sample(PIECES, rng.randrange(1, 4))).replace("/", "")[:120] + str(i) for i in range(4)]
    for i in range(8):
        folder = place / "p" / words[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i].transpose(1, 2, 0)).save(folder / f"{words[2]}{i}.png")
    model, told = place / "models" / words[3], place / "told.txt"
    asked: list[list[object]] = [["fit", "--out", model, *CHOICES, "--", place / "p"], ["report", model]]
    asked += [["suspects", model], ["explain", "--n-jobs", "1", model, place / "p" / words[0]]]
    asked += [["forget", model, "--", f"{words[0]}/{words[2]}0.png"]]
    for arguments in asked:
        if code := ended(child(lambda a=arguments: command(*a), told), told):
            if arguments[0] == "fit":  # a class of hidden files, or two that look alike
                return Outcomes(refused=1)
            raise Failed(f"{arguments[0]} of {words} ended with {code}: {told.read_text(errors='replace')[-300:]!r}")
        if raw := RAW & set(told.read_text(errors="replace")):
            raise Failed(f"{arguments[0]} prints control characters {raw} of a name")
        if arguments[0] == "report":
            page = (model / "report.html").read_text(encoding="utf-8")
            if "<script" in page or "<img src=x" in page:
                raise Failed("a page with a name that is active")
    return Outcomes(shown=1)


WAYS = (
    [], ["--likelihood", "laplace"], ["--likelihood", "dirichlet"], ["--probes", "50"], ["--outer-steps", "2"],
    ["--augment", "flip"], ["--class-weight", "balanced"], ["--body-scale", "loo", "--metric-power", "loo"],
)  # fmt: skip


def small_budgets(number: int, place: Path) -> Outcomes:
    """Any memory budget, below and above what the process has: a fit that never held more, or a sentence."""
    rng, told = Random(number), place / "told.txt"
    here = int(Path("/proc/self/statm").read_text().split()[1]) * 4 if Path("/proc/self/statm").exists() else 500_000
    budget = rng.choice((1, 3000, int(here * (0.8 + 0.8 * rng.random())))) * 1024
    arguments = ["fit", template() / "all", "--out", place / "m", *CHOICES, *rng.choice(WAYS), "--json", "-q"]
    code = ended(child(lambda: command(*arguments, "--memory-budget", budget), told), told)
    if (place / "m").exists() != (code == 0):
        raise Failed(f"exit code {code}, and the model {'is' if code else 'is not'} there")
    if code == 0 and (most := json.loads(told.read_text())["peak_bytes"]) > budget:
        raise Failed(f"{arguments} held {most} bytes, which is more than {budget}")
    return Outcomes(fitted=code == 0, refused=code == 2)
