"""Networks of a user's own by the name of a function: "package.module:function", on the command line alone.

Naming one runs its code, with all of the user's rights. So only what the user has just typed is ever looked up here: a
saved model keeps the name to show it, and nothing imports it from there (docs/threat-model.md).
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
from typing import Any

from torch import nn

from tangentune.errors import BackboneError, InputError, first_line
from tangentune.networks import backbone as networks
from tangentune.networks.backbone import Backbone, as_backbone, is_known

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_own(name: str) -> bool:
    """Whether this names a function of the user's; the prefixes of model hubs come first."""
    return not is_known(name) and _NAME.fullmatch(name) is not None


def named_backbone(name: str, size: Any = None) -> Backbone:
    """The network that a user has typed the name of: one that `load_backbone` knows, or "package.module:function".

    The module is looked for in the current folder, then where Python looks; the function takes nothing and gives a
    Backbone, or a network, which then takes colour pictures of a `size` (a side), or (channels, height, width).

    Raises:
        BackboneError: there is no such module or function, it fails, or it gives something else.
    """
    if not is_own(name):
        return networks.load_backbone(name)
    made = _called(name)
    if isinstance(made, Backbone):
        found = copy.copy(made)
    elif not isinstance(made, nn.Module):
        raise BackboneError(f"{name} gives a {type(made).__name__}; it must give a Backbone or a torch module")
    elif size is None:
        raise BackboneError(
            f"{name} gives a bare network, which does not say what pictures it takes; add --size, or let it give "
            "Backbone(network, input_size=..., mean=..., std=...)"
        )
    else:
        found = as_backbone(made, (3, size, size) if isinstance(size, int) else size)
    found.name = name
    return found


def _called(name: str) -> Any:
    """What the function of that name gives."""
    module_name, _, path = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)  # as `python -m` has it, and a console script has not
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
        return found()
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BackboneError(
                f"there is no module {module_name} in {here} or among the installed packages; --backbone names {name}"
            ) from error
        raise BackboneError(f"{module_name} needs {error.name}, which is not installed") from error
    except InputError:
        raise
    except Exception as error:  # of the user's own code
        raise BackboneError(f"{name} failed ({type(error).__name__}: {first_line(error)})") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
