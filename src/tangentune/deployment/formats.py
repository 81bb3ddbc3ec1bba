"""The two kinds of file: ONNX, for ONNX Runtime and whatever reads ONNX; PT2, for torch alone.

Both hold one function of a batch of pictures of any number, its weights, and what it answers as JSON.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from tangentune.deployment.network_graph import COUNT
from tangentune.deployment.onnx_shapes import fixed
from tangentune.deployment.plain_operators import plain_operators, without_writing_over, writes_over
from tangentune.errors import InputError, LayerError, cannot_import, first_line
from tangentune.jacobian.forward_mode import math_attention

INPUT, FACTS = "pixels", "tangentune"
LIMIT = 2**31 - 2**20  # bytes of an ONNX file, whose lengths are signed 32-bit numbers
_LATER = "prefer_deferred_runtime_asserts_over_guards"  # of torch.export, but not of torch 2.6
_GUARDS: dict[str, Any] = {_LATER: True} if _LATER in signature(torch.export.export).parameters else {}
WRITES_ONNX = bool(_GUARDS)  # torch 2.6 does not write graphs of any number of pictures
_TO_ONNX: dict[str, Any] = {"dynamo": True, "input_names": [INPUT], "verbose": False, "optimize": False}
_ORIGINS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
Runner = Callable[[NDArray], list[NDArray]]


@final
@dataclass(frozen=True)
class Format:
    """How a function is written as the bytes of a file, and run from them."""

    runtime: str
    write: Callable[[ExportedProgram, Sequence[str], dict[str, Any]], bytes]
    open: Callable[[bytes], Runner]
    plain: Callable[[nn.Module, Tensor], Runner]  # another function as this runtime runs it, to compare times with
    check: Callable[[], None]  # that the packages are there


def format_of(path: Path) -> Format:
    """The format of a file by its ending; an InputError for any other."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path} ends in neither .onnx (for ONNX Runtime) nor .pt2 (for torch); name one of the two")
    return FORMATS[path.suffix]


def traced(function: nn.Module, x: Tensor) -> ExportedProgram:
    """A function of batches like x, two inputs or more, as a graph of stock operators, its backward pass written out.

    The number of inputs is a symbol: where the function takes it for a constant, torch refuses the graph.
    """
    sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (x.dim() - 1)
    with _quiet(), math_attention():
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        fake = mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
        make = make_fx(
            lambda pixels: function(pixels), decomposition_table=plain_operators(), tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )  # fmt: skip
        try:
            graph = make(fake)
            without_writing_over(graph.graph)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            program = torch.export.export(graph, (x,), dynamic_shapes=({0: COUNT},), strict=False, **_GUARDS)
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:  # whatever torch finds in a network's operators
            reason = first_line(error)
            raise LayerError(f"this network cannot be written as a graph of stock operators ({reason})") from error
    for node in program.graph.nodes:  # lines of code, with the folders of this machine
        for key in _ORIGINS:
            node.meta.pop(key, None)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say to those who write exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _write_onnx(program: ExportedProgram, outputs: Sequence[str], facts: dict[str, Any]) -> bytes:
    with _quiet():
        made = None if any(map(writes_over, program.graph.nodes)) else _translated(program, outputs)
        try:
            made = made or torch.onnx.export(program, output_names=list(outputs), **_TO_ONNX)
        except torch.onnx.errors.OnnxExporterError as error:
            missing = re.search(r"op='([\w.]+)'", str(error))
            what = f"ONNX has no operator for {missing[1]}" if missing else first_line(error)
            raise LayerError(f"this network cannot be written as ONNX ({what}); name a .pt2 file instead") from error
    assert made is not None
    fixed(made.model)
    size = sum(value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value)
    if size > LIMIT:
        raise InputError(
            f"the file would have {size / 2**30:.1f} GiB, more than an ONNX file can hold; name a .pt2 file instead, "
            "or fit again with fewer moving parameters (`subset`)"
        )
    for node in made.model.graph:
        node.metadata_props.clear()
    made.model.metadata_props[FACTS] = json.dumps(facts)
    return made.model_proto.SerializeToString()


def _translated(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """The program in ONNX, operator by operator, or None if there is one that ONNX does not have.

    `traced` leaves little to take apart, and to look for it torch writes the whole graph down twice more.
    """
    as_it_is = copy.copy(program)
    as_it_is.run_decompositions = lambda *_, **__: as_it_is  # type: ignore[method-assign]
    try:
        return torch.onnx.export(as_it_is, output_names=list(outputs), **_TO_ONNX)
    except torch.onnx.errors.OnnxExporterError:
        return None


def _open_onnx(content: bytes) -> Runner:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {INPUT: pixels})


def _plain_onnx(function: nn.Module, x: Tensor) -> Runner:
    return _open_onnx(_write_onnx(traced(function, x), ("features",), {}))


def _check_onnx() -> None:
    if not WRITES_ONNX:
        old = f"torch {torch.__version__} is too old to write ONNX"
        raise InputError(f"{old}; name a .pt2 file, or update torch: pip install --upgrade torch")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise cannot_import(package, error, 'pip install "tangentune[export]"') from error


def _write_pt2(program: ExportedProgram, outputs: Sequence[str], facts: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    with _quiet():
        torch.export.save(program, stream, extra_files={FACTS: json.dumps(facts | {"outputs": list(outputs)})})
    return stream.getvalue()


def _open_pt2(content: bytes) -> Runner:
    with _quiet():
        return _without_gradients(torch.export.load(io.BytesIO(content)).module())


def _without_gradients(module: nn.Module) -> Runner:
    def run(pixels: NDArray) -> list[NDArray]:
        with torch.no_grad():
            return [np.asarray(value) for value in module(torch.from_numpy(pixels))]

    return run


FORMATS = {
    ".onnx": Format("ONNX Runtime", _write_onnx, _open_onnx, _plain_onnx, _check_onnx),
    ".pt2": Format("torch", _write_pt2, _open_pt2, lambda function, _: _without_gradients(function), lambda: None),
}
