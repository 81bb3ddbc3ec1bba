"""Options of the command line: their types, their names, and the sections in which `--help` shows them.

Options of a fit are the estimators' own; their defaults are read from the text of the estimators' constructor, because
importing it would import torch.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, final

import click

from tangentune.cli.words import spoken
from tangentune.errors import TangentuneError

NETWORK, SOLVER, MACHINE = "Network", "Least squares", "Machine"
STREAMS = "Input and output"


@final
@dataclass(eq=False)
class WordOrNumber(click.ParamType):
    """One of some words, or a number that passes a test: "loo" stays text, "0.25" becomes 0.25."""

    words: dict[str, Any]
    fits: Callable[[float], bool] | None
    what: str
    name: str = "value"

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


# What processes of torchrun do together; of every other command one of them is enough, and two would disturb another.
SHARED = {"fit", "predict", "evaluate", "select", "suggest", "map", "sums", "score", "merge"}


@final
class Command(click.Command):
    """A command whose help page has a section for each group of options."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; errors come in the words of the command line."""
        try:
            if self.name not in SHARED and "WORLD_SIZE" in os.environ:
                from tangentune.pictures.ranks import Rank

                if not Rank.here().leads:
                    return None
            return super().invoke(ctx)
        except TangentuneError as error:
            raise TangentuneError(self.words(str(error))) from error

    def words(self, sentence: str) -> str:
        """A sentence of the library in the words of this command."""
        return spoken(sentence, self.params, estimator_defaults())

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


def described(sentences: dict[str, str], section: str, names: str, **settings: Any) -> Callable[..., Any]:
    """An option with its sentence of a command's table, found by its first name."""
    return option(section, names, sentences[names.split()[0].strip("-").replace("-", "_")], **settings)


def page_option(name: str, help: str = "Also write an HTML page that stands alone.") -> Callable[..., Any]:
    """An option for a page, refused before the work where no page can be written."""
    return option(STREAMS, name, help, metavar="FILE.html", type=click.Path(dir_okay=False), callback=_checked_page)


def _checked_page(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        if not value.lower().endswith((".html", ".htm")):
            raise click.BadParameter(f"a page ends in .html, {value!r} does not")
        from tangentune.methods.source_selection.manifest import check_place

        check_place(Path(value))
    return value


@cache
def estimator_defaults() -> dict[str, Any]:
    """Default of every option of the estimators, by name; nothing is imported."""
    text = (Path(__file__).parents[1] / "estimators" / "base.py").read_text(encoding="utf-8")
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    given = next(node.args for node in functions if node.name == "__init__" and node.args.kwonlyargs)
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {one.arg: ast.literal_eval(value) for one, value in pairs if value is not None}


def with_hyphens(name: str) -> str:
    """`--metric_power` is as good as `--metric-power`."""
    return name.replace("_", "-")


def _chosen(fits: Callable[[float], bool] | None, what: str, **words: Any) -> WordOrNumber:
    return WordOrNumber({"loo": "loo", "evidence": "evidence", **words}, fits, f"{what}, loo or evidence")


_SWITCH = _chosen(None, "true, false", true=True, yes=True, false=False, no=False)
_BALANCE = WordOrNumber({"none": None, "balanced": "balanced"}, None, "none or balanced", "word")
MIRROR = WordOrNumber({"none": None, "flip": "flip"}, None, "none or flip", "word")
_VIEWS = WordOrNumber({"loo": "loo", "flip": "flip", "none": None}, None, "loo, flip or none", "word")
_STEPS = WordOrNumber({"loo": "loo"}, lambda value: value >= 0 and value % 1 == 0, "a whole number >= 0, or loo")
COUNT = click.IntRange(min=1)

_HELP = {
    "backbone": "mobilenet_v2, efficientnet_lite0, efficientnet_lite1, resnet50, timm:NAME, torchvision:NAME, hf:DIR, "
    "or package.module:function of your own, whose code then runs.",
    "size": "Side of the pictures in pixels; the network's own if not given.",
    "subset": "Parameters that move: all, none (a linear probe), last:K, norm, bias, or glob patterns.",
    "augment": "flip: features are averaged over each picture and its mirror image; none; or loo, whichever is better.",
    "regression": "Labels are numbers, as in a CSV file with columns path,label.",
    "outer_steps": "Minibatch steps towards the labels before the network is linearised, cross-fitted: a whole number "
    "(with 0 no label enters the features), or loo, as many as leave-one-out finds best.",
    "solver": "dual: by the kernel of all pictures; landmarks: by rows of fixed width, for very many; auto: as suits.",
    "landmarks": "Pictures that span the rows of fixed width, at most; as many as usually pay if not given.",
    "likelihood": "Where probabilities come from: least_squares, dirichlet or laplace.",
    "damping": "Strength of the regularisation: loo or evidence choose it, a number > 0 fixes it.",
    "body_scale": "Weight of the network's body against its head: loo, evidence, or a number >= 0.",
    "metric_power": "Power of the K-FAC metric: loo, evidence, 0, 0.25 or 0.5.",
    "normalize": "Scale the rows of head and body to length one: loo, evidence, true or false.",
    "probes": "Random directions in feature space along which the body is linearised.",
    "probe_space": "Where they lie: among the pictures' principal components, or anywhere.",
    "class_weight": "none, or balanced: pictures of rare classes count more.",
    "random_state": "Seed of the directions.",
    "memory_budget": "Never use more memory than this, such as 4GiB or 500MB; half of what is free if not given.",
    "batch_size": "Pictures that go through the network at a time; 32, or as in the fit, if not given.",
    "device": "cpu, cuda, cuda:1, ..., or auto: a GPU where there is one; cpu if not given.",
    "autocast": "bfloat16: the network's passes in mixed precision, for GPUs and processors that have it; the model "
    "keeps to it. In full if not given.",
    "n_jobs": "Processes that decode picture files; all cores if not given.",
    "path_column": "Column of a table that holds the pictures; path, image, file or the like if not given.",
    "label_column": "Column of a table that holds the labels; label, class, target or the like if not given.",
    "label_separator": "What stands between the labels of a picture where a cell of that column holds several; for a "
    "model of several labels a semicolon if not given.",
    "label_columns": "Columns of 0 and 1 instead, each a label of its own, with commas between.",
    "on_error": "At a picture that cannot be read: stop and name it, or leave it out and count it.",
    "json": "Print one JSON document, and nothing else, on standard output.",
    "quiet": "No progress bars, notes or cost estimate.",
}


_option = partial(described, _HELP)
_AGAIN = "package.module:function of a model's own network, whose code then runs; its saved model only names it."


def _of_fit(section: str, name: str, **settings: Any) -> Callable[..., Any]:
    """An option of the estimators, with their default; a type that knows the word "none" shows it as that."""
    default, kind = estimator_defaults()[name], settings.get("type")
    if default is None and isinstance(kind, WordOrNumber):
        default = "none"
    return _option(section, f"--{with_hyphens(name)}", default=default, **settings)


_NETWORK = (
    _option(NETWORK, "--backbone", default="mobilenet_v2", metavar="NAME"),
    _option(NETWORK, "--size --input-size input_size", type=COUNT, metavar="PIXELS"),
)
_AUGMENT = _of_fit(NETWORK, "augment", type=_VIEWS)
_REGRESSION = _option(SOLVER, "--regression", is_flag=True)
_BODY_SCALE = _of_fit(SOLVER, "body_scale", type=_chosen(lambda value: value >= 0, "a number >= 0"))
_METRIC_POWER = _of_fit(SOLVER, "metric_power", type=_chosen(lambda value: value in (0.0, 0.25, 0.5), "0, 0.25, 0.5"))
_NORMALIZE = _of_fit(SOLVER, "normalize", type=_SWITCH)
_SEED = _of_fit(SOLVER, "random_state", type=int, metavar="SEED")
_MEMORY = _of_fit(MACHINE, "memory_budget", metavar="BYTES")
_AUTOCAST = _of_fit(MACHINE, "autocast", type=click.Choice(["bfloat16"]))
_FIT = (
    _of_fit(NETWORK, "subset", metavar="WORDS"),
    _AUGMENT,
    _REGRESSION,
    _of_fit(SOLVER, "outer_steps", type=_STEPS),
    _of_fit(SOLVER, "solver", type=click.Choice(["auto", "dual", "landmarks"])),
    _of_fit(SOLVER, "landmarks", type=COUNT, metavar="COUNT"),
    _of_fit(SOLVER, "likelihood", type=click.Choice(["least_squares", "dirichlet", "laplace"]), metavar="WORD"),
    _of_fit(SOLVER, "damping", type=_chosen(lambda value: value > 0, "a number > 0")),
    _BODY_SCALE,
    _METRIC_POWER,
    _NORMALIZE,
    _of_fit(SOLVER, "probes", type=COUNT, metavar="COUNT"),
    _of_fit(SOLVER, "probe_space", type=click.Choice(["pca", "isotropic"])),
    _of_fit(SOLVER, "class_weight", type=_BALANCE),
    _SEED,
    _MEMORY,
    _AUTOCAST,
)
_OWN = (option(NETWORK, "--backbone", _AGAIN, metavar="NAME"),)
_DEVICE = (_option(MACHINE, "--batch-size", type=COUNT, metavar="COUNT"), _option(MACHINE, "--device", metavar="NAME"))
_READING = (
    _option(MACHINE, "--n-jobs", type=COUNT, metavar="COUNT"),
    _option(STREAMS, "--path-column", metavar="NAME"),
    _option(STREAMS, "--label-column", metavar="NAME"),
    _option(STREAMS, "--on-error", type=click.Choice(["raise", "skip"]), default="raise"),
)
_LABELS = (_option(STREAMS, "--label-separator", metavar="TEXT"), _option(STREAMS, "--label-columns", metavar="NAMES"))
_OUTPUT = (_option(STREAMS, "--json as_json", is_flag=True), _option(STREAMS, "--quiet -q", is_flag=True))


def _together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """One decorator for several options, which stand in the help in this order."""

    def attach(function: Callable[..., Any]) -> Callable[..., Any]:
        for one in reversed(options):  # each puts its option before those already there
            function = one(function)
        return function

    return attach


# Every option of the estimators first.
fit_options = _together(*_NETWORK, *_FIT, *_DEVICE, *_READING, *_LABELS, *_OUTPUT)
map_options = _together(  # what a feature map is made by
    *_NETWORK, _AUGMENT, _REGRESSION, _BODY_SCALE, _METRIC_POWER, _NORMALIZE, _SEED, _MEMORY, _AUTOCAST, *_DEVICE,
    *_READING, *_OUTPUT,
)  # fmt: skip
site_options = _together(_REGRESSION, *_DEVICE, *_READING, *_OUTPUT)  # what the pictures of one owner are read by
damping_option = _of_fit(SOLVER, "damping", type=_chosen(lambda value: value > 0, "a number > 0"))
network_options = _together(*_NETWORK)  # which network, and for pictures of what size
set_options = _together(*_DEVICE, *_READING, *_OUTPUT)  # what a command takes that reads pictures and no model
own_option = _together(*_OWN)  # the network of a model that is one's own
shared_options = _together(*_OWN, *_DEVICE, *_READING, *_OUTPUT)  # the same of a model
label_options = _together(*_OWN, *_DEVICE, *_READING, *_LABELS, *_OUTPUT)  # and one that reads labels, perhaps several
table_options = _together(*_OWN, *_READING[:3], *_OUTPUT)  # what a command takes that looks for a model's pictures
run_options = _together(*_DEVICE, *_OUTPUT)  # what a command takes that reads neither pictures nor a model
model_options = _together(*_OWN, *_DEVICE, *_OUTPUT)  # what a command takes that reads nothing but a model
