"""An ONNX graph without steps that only ask what is known: sizes but for the number of pictures, kinds of constants.

torch writes the shape of every reshaped value as small steps that put the number of pictures before the other sizes:
four thousand in a MobileNetV2, each a microsecond of every prediction, where -1 says the same. It also casts constants
to the kind of another value, behind which ONNX Runtime no longer sees them as constants, fuses nothing with them, and
warns of each.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np


def fixed(written: Any) -> None:
    """Change an `onnx_ir` model in place; what it calculates stays the same."""
    ir, passes = import_module("onnx_ir"), import_module("onnx_ir.passes.common")
    known = dict[tuple[int, ...], Any]()
    for node in list(written.graph):
        if node.op_type == "Reshape":
            sizes = _sizes(node.outputs[0])
            if sizes is None:
                continue
            if sizes not in known:
                name = "shape" + "".join(f"_{size}" for size in sizes).replace("-1", "n")
                known[sizes] = ir.Value(name=name, const_value=ir.tensor(np.array(sizes, np.int64), name=name))
                written.graph.register_initializer(known[sizes])
            node.replace_input_with(1, known[sizes])
        elif node.op_type == "CastLike" and (kind := node.inputs[1].dtype) is not None:
            made = node.inputs[0]
            number = ir.convenience.get_const_tensor(made)  # values of constants do not know their kind
            if number is None or number.dtype != kind:
                cast = ir.node("Cast", [made], {"to": kind.value})  # which ONNX Runtime sees through
                written.graph.insert_before(node, cast)
                made = cast.outputs[0]
            node.outputs[0].replace_all_uses_with(made)
    passes.RemoveUnusedNodesPass()(written)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A value's shape with -1 for the one size that depends on the number of pictures; None if there are more."""
    if value.shape is None:
        return None
    sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None
