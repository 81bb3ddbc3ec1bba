"""How a command meets its user: errors as one sentence, notes on stderr, results alone on stdout."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import IO, Any

import click

from tangentune.cli.options import Command
from tangentune.errors import TangentuneError, shown

USAGE, BROKEN_PIPE, INTERRUPTED = 2, 1, 130


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn every mistake of the user's into one sentence on stderr; the exit code.

    0: done. 2: a mistake in the arguments, pictures or model. 130: interrupted, by Ctrl-C, or by the end of the session
    or the machine. 1: the reader of the output left. Anything else is our own mistake and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may hold bytes that no text can show
            stream.reconfigure(errors="backslashreplace")
    try:
        with _ends_as_if_interrupted():
            code = command()
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        return _fail(_usage(error), USAGE)
    except SystemExit as end:  # click and rich end so when nobody reads on
        return end.code if isinstance(end.code, int) else BROKEN_PIPE
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # nothing more to say, not even when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except TangentuneError as error:
        return _fail(str(error), USAGE)
    except MemoryError:
        return _fail("out of memory; use a lower --memory-budget, --batch-size or --size", USAGE)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", USAGE)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _ends_as_if_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end as Ctrl-C does, so that nothing half done and no decoder process stays behind.

    Compiled code that is interrupted may raise an error of its own: once we were asked to end, any error is that.
    """
    asked: list[int] = []

    def end(number: int, _: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python allows it there only
    usual = (signal.SIG_DFL, signal.default_int_handler)  # `nohup` keeps its meaning
    changed = {number: former for number in numbers if (former := signal.getsignal(number)) in usual}
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    except Exception as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, former in changed.items():
            signal.signal(number, former)


def _usage(error: click.ClickException) -> str:
    text = error.format_message().strip().rstrip(".")
    text = re.sub(r"a valid (integer|float)( range)?$", "a number", text[:1].lower() + text[1:])
    context = getattr(error, "ctx", None)
    if context is None:
        return text
    return f"{text}{' See' if text.endswith('?') else '; see'} {context.command_path} --help"


def _fail(sentence: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        click.echo("error: " + shown(" ".join(sentence.split("\n"))), err=True)
    return code


@contextlib.contextmanager
def working(quiet: bool, kept: str | None = None) -> Iterator[IO[str]]:
    """While work goes on: warnings become notes on stderr, stray prints go there too; gives the real stdout.

    If it is interrupted, it says that what was done is `kept` in some place.
    """
    stdout = sys.stdout
    _heavy_imports()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if not quiet:
            command = getattr(click.get_current_context(silent=True), "command", None)
            text = command.words(str(message)) if isinstance(command, Command) else str(message)
            click.echo(f"note: {shown(' '.join(text.split()))}", err=True)

    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = note
        try:
            yield stdout
        except KeyboardInterrupt:
            if kept is not None and not quiet:
                click.echo(f"note: what was done is kept in {shown(kept)}; the same command goes on", err=True)
            raise


def _heavy_imports() -> None:
    """Torch and what stands on it, which every command needs that works.

    Nothing of what imports make is garbage: looking for some among it would take half a second, again and again.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import_module("tangentune.estimators.saving")
        gc.freeze()
    finally:
        gc.enable()


def check_device(name: str | None) -> None:
    """Refuse, with torch's reason, a device that it does not know or this machine lacks; None is none in particular."""
    from tangentune.networks.backbone import usable_device

    if name is not None:
        usable_device(name, "--device")


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on the real standard output; a number that JSON has not (NaN, infinity) is null there."""
    from tangentune._files import plain

    click.echo(json.dumps(plain(_finite(document)), indent=2, allow_nan=False))  # escapes: readable by any reader


def _finite(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
