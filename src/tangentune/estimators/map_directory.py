"""A frozen feature map on disk: a directory as a model's, with what rows are taken by and nothing that was fitted.

Landmark pictures are in it: whoever gets the map sees them. A data-independent one has none.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from tangentune.errors import StoreError
from tangentune.estimators.frozen_map import FrozenMap, rows_in_memory
from tangentune.estimators.model_directory import read_model, told, write_model
from tangentune.estimators.model_record import AUTOCAST, BACKBONE, MAP, check_metric
from tangentune.estimators.packing import pack, unpack
from tangentune.estimators.record import (
    DIGEST,
    FLAG,
    LEAST0,
    POSITIVE,
    TEXT,
    Misfit,
    anything,
    by_name,
    each,
    fields,
    maybe,
    one_of,
    whole,
)
from tangentune.estimators.saving import metric_tensors, named, pack_map, saved_backbone, under, unpack_map
from tangentune.estimators.training_set import PictureReader
from tangentune.estimators.user_input import read_count
from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.landmark_map import LandmarkMap
from tangentune.kernels.sketch import Sketch, SketchMap
from tangentune.networks.backbone import AnyBackbone
from tangentune.pictures.pictures import Pictures

KIND = "TangentFeatures"
_OPTIONS = (
    "landmarks", "width", "metric_power", "body_scale", "normalize", "augment", "input_size", "batch_size",
    "memory_budget", "random_state",
)  # fmt: skip
_CHECK = fields({
    "estimator": one_of(KIND),
    "parameters": fields(dict.fromkeys(_OPTIONS, anything), AUTOCAST),
    "backbone": fields(BACKBONE, AUTOCAST, more=True),
    "map": fields(MAP | {"body_scale": LEAST0, "normalize": FLAG, "power": LEAST0}),
    "landmarks": maybe(each(TEXT, 1)),
    "sizes": by_name(each(whole(1, 2**40), 2, 2)),
    "damping": maybe(POSITIVE),
    "fingerprint": DIGEST,
    "vectors": maybe(whole(1, 2**40)),
})  # fmt: skip
_CARD = """# A frozen feature map of {network}

Made by tangentune: `tangentune sums PICTURES --map {place} --out SITE.sums` adds up pictures in it, and
`tangentune merge *.sums --map {place} --out MODEL` solves for a network. {held}

Fingerprint `{fingerprint}`.
"""


def save_map(
    directory: str | os.PathLike[str], frozen: FrozenMap, options: dict[str, Any], vectors: int | None
) -> None:
    """Write a map, in one move; `vectors` is the length of vectors, None for pictures. A StoreError as of models."""
    feature_map, finite, pixels = frozen.feature_map, frozen.finite, None
    tensors = {"probes": feature_map.probes} | metric_tensors(feature_map)
    if isinstance(finite, LandmarkMap):
        assert frozen.landmarks is not None
        tensors["root"], pixels = finite.root, frozen.landmarks.pixels
        held = f"It holds {len(frozen.landmarks)} **landmark pictures**; give it only to those who may see them."
    else:
        tensors |= named(finite.sketch.left, "left.") | named(finite.sketch.right, "right.")
        held = "No picture had part in it."
    chosen = {"body_scale": feature_map.body_scale, "normalize": feature_map.normalize, "power": frozen.power}
    config = {
        "estimator": KIND,
        "parameters": {name: pack(options[name], name) for name in (*_OPTIONS, "autocast")},
        "backbone": frozen.backbone.describe(),
        "map": pack_map(feature_map) | chosen,
        "landmarks": None if frozen.landmarks is None else frozen.landmarks.ids,
        "sizes": finite.sketch.sizes if isinstance(finite, SketchMap) else {},
        "damping": frozen.damping,
        "fingerprint": frozen.fingerprint,
        "vectors": vectors,
    }
    place = os.path.basename(os.path.abspath(directory))
    card = _CARD.format(network=frozen.backbone.name, place=place, held=held, fingerprint=frozen.fingerprint)
    write_model(directory, config, tensors, card, pixels)


def load_map(
    directory: str | os.PathLike[str], given: AnyBackbone | None, device: Any
) -> tuple[dict[str, Any], FrozenMap, int | None]:
    """What `save_map` wrote: options, map, and the length of vectors; a StoreError or BackboneError as of models."""

    def check(config: dict[str, Any]) -> None:
        if (kind := config.get("estimator")) != KIND:
            raise StoreError(f"{directory} holds a {kind}, no feature map; make one with TangentFeatures")
        _CHECK(config, "")

    contents = read_model(directory, check)
    config, tensors, folder = contents.settings, contents.tensors, contents.version.directory
    with told(folder):
        try:
            options = unpack(config["parameters"])
            read_count(options, "batch_size")
        except ValueError as error:  # also an InputError
            raise Misfit(f"parameters: {error}") from error
    backbone, origin = saved_backbone(config["backbone"], given, device, directory, options["input_size"])
    options |= {"backbone": origin}
    with told(folder):
        _check_arrays(config, tensors, dict(backbone.module.named_parameters()))
    saved = config["map"]
    tangent = RowPlan(backbone.module, backbone.feature_function, tuple(saved["ruled"]), tuple(saved["generic"]))
    feature_map = unpack_map(saved, tensors, tangent, saved["body_scale"], saved["normalize"])
    if config["landmarks"] is None:
        signs = (
            {name: one.to(backbone.device) for name, one in under(tensors, f"{side}.").items()}
            for side in ("left", "right")
        )
        pictures, sizes = None, {name: (a, b) for name, (a, b) in config["sizes"].items()}
        finite = SketchMap(feature_map, Sketch(sizes, *signs))
    else:
        pictures = Pictures(tensors["pixels"], None, config["landmarks"])
        reader = PictureReader(backbone, options["batch_size"], feature_map.mirrored, 0)
        rows = rows_in_memory(feature_map, reader, pictures)
        finite = LandmarkMap(feature_map, rows, tensors["root"].to(backbone.device))
    frozen = FrozenMap(backbone, finite, pictures, config["fingerprint"], saved["power"], config["damping"])
    return options, frozen, config["vectors"]


def _check_arrays(config: dict[str, Any], tensors: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    """Arrays against the settings and the network's parameters: what no map can have is a Misfit."""
    moving, sizes, landmarks = (
        [*config["map"]["ruled"], *config["map"]["generic"]],
        config["sizes"],
        config["landmarks"],
    )
    probes = tensors.get("probes", torch.empty(0))
    fits = probes.ndim == 2 and all(name in parameters for name in moving)
    fits = fits and all(not t.is_floating_point() or bool(torch.isfinite(t).all()) for t in tensors.values())
    if fits and landmarks is None:
        left, right = under(tensors, "left."), under(tensors, "right.")
        fits = left.keys() == right.keys() <= sizes.keys() == set(moving)
        fits = fits and all(a * b == len(probes) * parameters[name].numel() for name, (a, b) in sizes.items())
        for name in left if fits else ():
            fits = fits and left[name].dtype == right[name].dtype == torch.int8
            fits = fits and [*left[name].shape[1:], *right[name].shape[1:]] == [*sizes[name]]
            fits = fits and len(left[name]) == len(right[name])
    elif fits:
        root, pixels = tensors.get("root", torch.empty(0)), tensors.get("pixels", torch.empty(0))
        size = config["backbone"]["contract"]["input_size"]
        fits = size is None or list(pixels.shape[1:]) == size
        fits = fits and root.ndim == 2 and len(root) == len(landmarks) == len(pixels) and root.dtype == torch.float64
    if not fits:
        raise Misfit("its arrays do not fit one another and the network")
    for name in moving:
        check_metric(name, tensors, parameters[name].numel())
