"""Every error a user can cause, each with a sentence that says what to do."""


class TangentuneError(Exception):
    """Base of all errors raised on purpose by tangentune."""


class InputError(TangentuneError, ValueError):
    """The caller's argument or data cannot be used as given."""


class PictureError(InputError):
    """A picture, folder or label list cannot be read; the message names the file."""


class BackboneError(InputError):
    """A network cannot serve as a backbone (unknown, damaged, random in its output)."""


class LayerError(InputError):
    """A parameter's per-sample gradient cannot be computed correctly; the message names it."""


class BudgetError(TangentuneError, MemoryError):
    """The work cannot be done inside the memory budget, whatever the tiling."""


class StoreError(TangentuneError, ValueError):
    """A saved model directory is missing, damaged or of a newer version."""


class MissingExtraError(TangentuneError, ImportError):
    """An optional package is absent; the message holds the command that installs it."""
