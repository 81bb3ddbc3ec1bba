"""Options of the command line: their types, their names, and the sections in which `--help` shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import click

NETWORK, SOLVER, MACHINE = "Network", "Least squares", "Machine"
STREAMS = "Input and output"


@final
class WordOrNumber(click.ParamType):
    """One of some words, or a number that passes a test: "loo" stays text, "0.25" becomes 0.25."""

    name = "value"

    def __init__(self, words: dict[str, Any], fits: Callable[[float], bool] | None, what: str) -> None:
        self.words, self.fits, self.what = words, fits, what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word's meaning or the number; otherwise a usage error that lists what may be given."""
        if not isinstance(value, str):
            return value
        word = value.strip().lower()
        if word in self.words:
            return self.words[word]
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if self.fits is None or not math.isfinite(number) or not self.fits(number):
            self.fail(f"{value!r} is not {self.what}.", param, ctx)
        return number


@final
class Option(click.Option):
    """An option that knows its section of the help page."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


@final
class Command(click.Command):
    """A command whose help page has a section for each group of options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section, in the order in which the sections first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", STREAMS), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=28)


def option(section: str, names: str, help: str, **settings: Any) -> Callable[..., Any]:
    """A decorator that adds one option, its default shown where it has one."""
    shown = settings.get("default") is not None
    return click.option(*names.split(), cls=Option, section=section, help=help, show_default=shown, **settings)


def _choice(fits: Callable[[float], bool] | None, what: str, **words: Any) -> WordOrNumber:
    return WordOrNumber({"loo": "loo", "evidence": "evidence", **words}, fits, f"{what}, loo or evidence")


POWER = _choice(lambda value: value in (0.0, 0.25, 0.5), "0, 0.25, 0.5")
SCALE = _choice(lambda value: value >= 0, "a number >= 0")
DAMPING = _choice(lambda value: value > 0, "a number > 0")
SWITCH = _choice(None, "true, false", true=True, yes=True, false=False, no=False)
BALANCE = WordOrNumber({"none": None, "balanced": "balanced"}, None, "none or balanced")
MIRROR = WordOrNumber({"none": None, "flip": "flip"}, None, "none or flip")
COUNT = click.IntRange(min=1)
STEPS = WordOrNumber({"loo": "loo"}, lambda value: value >= 0 and value % 1 == 0, "a whole number >= 0, or loo")

_NETWORK = (
    option(
        NETWORK,
        "--backbone",
        "mobilenet_v2, efficientnet_lite0, efficientnet_lite1, timm:NAME, torchvision:NAME or hf:DIR.",
        default="mobilenet_v2",
        metavar="NAME",
    ),
    option(
        NETWORK,
        "--size --input-size input_size",
        "Side of the pictures in pixels; the network's own if not given.",
        type=COUNT,
        metavar="PIXELS",
    ),
)

_FIT = (
    option(
        NETWORK,
        "--subset",
        "Parameters that move: all, none (a linear probe), last:K, norm, bias, or glob patterns.",
        default="all",
        metavar="WORDS",
    ),
    option(
        NETWORK,
        "--augment",
        "none, or flip: features are averaged over each picture and its mirror image.",
        type=MIRROR,
        default="none",
        metavar="WORD",
    ),
    option(
        SOLVER,
        "--regression",
        "Labels are numbers, as in a CSV file with columns path,label.",
        is_flag=True,
    ),
    option(
        SOLVER,
        "--outer-steps",
        "Minibatch steps towards the labels before the network is linearised, cross-fitted: a whole number, or loo.",
        type=STEPS,
        default="0",
        metavar="VALUE",
    ),
    option(
        SOLVER,
        "--likelihood",
        "Where probabilities come from: least_squares, dirichlet or laplace.",
        type=click.Choice(["least_squares", "dirichlet", "laplace"]),
        default="least_squares",
    ),
    option(
        SOLVER,
        "--damping",
        "Strength of the regularisation: loo or evidence choose it, a number > 0 fixes it.",
        type=DAMPING,
        default="loo",
        metavar="VALUE",
    ),
    option(
        SOLVER,
        "--body-scale",
        "Weight of the network's body against its head: loo, evidence, or a number >= 0.",
        type=SCALE,
        default="loo",
        metavar="VALUE",
    ),
    option(
        SOLVER,
        "--metric-power",
        "Power of the K-FAC metric: loo, evidence, 0, 0.25 or 0.5.",
        type=POWER,
        default="loo",
        metavar="VALUE",
    ),
    option(
        SOLVER,
        "--normalize",
        "Scale the rows of head and body to length one: loo, evidence, true or false.",
        type=SWITCH,
        default="loo",
        metavar="VALUE",
    ),
    option(
        SOLVER,
        "--probes",
        "Random directions in feature space along which the body is linearised.",
        type=COUNT,
        default=1,
        metavar="COUNT",
    ),
    option(
        SOLVER,
        "--probe-space",
        "Where they lie: among the pictures' principal components, or anywhere.",
        type=click.Choice(["pca", "isotropic"]),
        default="pca",
    ),
    option(
        SOLVER,
        "--class-weight",
        "none, or balanced: pictures of rare classes count more.",
        type=BALANCE,
        default="none",
        metavar="WORD",
    ),
    option(SOLVER, "--random-state", "Seed of the directions.", type=int, default=0, metavar="SEED"),
    option(
        MACHINE,
        "--memory-budget",
        "Never use more memory than this, such as 4GiB or 500MB; half of what is free if not given.",
        metavar="BYTES",
    ),
)

_DEVICE = (
    option(
        MACHINE,
        "--batch-size",
        "Pictures that go through the network at a time; 32, or as in the fit, if not given.",
        type=COUNT,
        metavar="COUNT",
    ),
    option(MACHINE, "--device", "cpu, cuda, cuda:1, mps, ...", metavar="NAME"),
)

_READING = (
    option(
        MACHINE,
        "--n-jobs",
        "Processes that decode picture files; all cores if not given.",
        type=COUNT,
        metavar="COUNT",
    ),
    option(
        STREAMS,
        "--on-error",
        "At a picture that cannot be read: stop and name it, or leave it out and count it.",
        type=click.Choice(["raise", "skip"]),
        default="raise",
    ),
)

_OUTPUT = (
    option(
        STREAMS,
        "--json as_json",
        "Print one JSON document, and nothing else, on standard output.",
        is_flag=True,
    ),
    option(STREAMS, "--quiet -q", "No progress bars, notes or cost estimate.", is_flag=True),
)


def fit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every option of the estimators, then the shared ones."""
    return _attach(_NETWORK + _FIT + _DEVICE + _READING + _OUTPUT, function)


def network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which network, and for pictures of what size."""
    return _attach(_NETWORK, function)


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that reads pictures takes."""
    return _attach(_DEVICE + _READING + _OUTPUT, function)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a command takes that reads nothing but a model."""
    return _attach(_DEVICE + _OUTPUT, function)


def _attach(decorators: tuple[Callable[..., Any], ...], function: Callable[..., Any]) -> Callable[..., Any]:
    for decorator in reversed(decorators):  # each puts its option before those already there
        function = decorator(function)
    return function


def with_hyphens(name: str) -> str:
    """`--metric_power` is as good as `--metric-power`."""
    return name.replace("_", "-")
