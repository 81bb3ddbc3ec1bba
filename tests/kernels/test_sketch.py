"""A sketch's products are the kernel on average, on a real network, with an error that falls as width^-1/2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tangentune.errors import MissingExtraError
from tangentune.estimators.training_set import PictureReader
from tangentune.jacobian.layers import Pairs, Rows
from tangentune.jacobian.survey import survey
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.data_independent import data_independent_map, pink_noise
from tangentune.kernels.feature_map import FeatureRows, TangentMap, collect_rows, cross_kernel
from tangentune.kernels.sketch import Sketch, draw_sketch, row_sizes, sketched
from tangentune.networks.backbone import load_backbone
from tangentune.networks.parameters import used_parameters
from tangentune.pictures.pictures import Pictures

SIZE, COUNT = 32, 12


@pytest.fixture(scope="module")
def real() -> tuple[TangentMap, FeatureRows]:
    """The second half of MobileNetV2, and its rows of a few pictures."""
    try:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    except MissingExtraError as error:
        pytest.skip(str(error))
    pixels = pink_noise(COUNT, (3, SIZE, SIZE), 7)
    inputs = PictureReader(backbone, 32, False, 0).open(Pictures(pixels, None, [str(i) for i in range(COUNT)]))
    x = next(iter(inputs.batches([0, 1])))
    module, function = backbone.module, backbone.feature_function
    tangent = survey(module, function, used_parameters(module, function, x), x)
    probes = torch.randn(1, 1280, generator=torch.Generator().manual_seed(0)).to(x)
    with torch.no_grad():
        feature_map = data_independent_map(tangent, inputs, probes, FixedChoices(None, None, None), None, False)
        return feature_map, collect_rows(feature_map, lambda: inputs.portions(None), COUNT)


def test_its_products_are_unbiased_and_err_as_the_root_of_the_width(real: tuple[TangentMap, FeatureRows]) -> None:
    feature_map, rows = real
    exact, sizes, seeds = cross_kernel(feature_map, rows) - rows.phi @ rows.phi.T, row_sizes(rows), 6
    errors, means = dict[int, float](), dict[int, Tensor]()
    for width in (1000, 4000, 16000):
        found = torch.stack([products(feature_map, rows, draw_sketch(sizes, width, seed)) for seed in range(seeds)])
        errors[width] = float((found - exact).square().mean().sqrt())
        means[width] = found.mean(0)
    assert 1.6 < errors[1000] / errors[4000] < 2.6
    assert 1.6 < errors[4000] / errors[16000] < 2.6
    averaged = float((means[4000] - exact).square().mean().sqrt())
    assert averaged < 1.3 * errors[4000] / seeds**0.5  # nothing is left but chance
    assert errors[16000] < 0.05 * float(exact.diagonal().mean())


def products(feature_map: TangentMap, rows: FeatureRows, sketch: Sketch) -> Tensor:
    found = sketched(feature_map, sketch, rows)
    return found @ found.T


def test_the_width_is_shared_out_and_short_rows_stay_whole() -> None:
    sizes = {"long": (40, 30), "bias": (5, 1), "wide": (20, 20)}
    sketch = draw_sketch(sizes, 205, 0)
    assert (sketch.width, sketch.count("bias"), sketch.count("long"), sketch.count("wide")) == (205, 5, 100, 100)
    assert "bias" not in sketch.left
    assert draw_sketch(sizes, 10**6, 0).width == 40 * 30 + 5 + 400


def test_pairs_and_explicit_rows_have_the_same_sketch() -> None:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64) for shape in ((6,), (2, 5)))
    pairs = Pairs(a, g)
    sizes = row_sizes(FeatureRows(a[:, 0], {"w": pairs}, torch.ones(3)))
    assert sizes == {"w": (10, 6)}
    assert row_sizes(FeatureRows(a[:, 0], {"w": Rows(pairs.explicit())}, torch.ones(3))) == sizes


def test_noise_has_the_spectrum_of_photographs() -> None:
    noise = pink_noise(40, (3, 32, 32), 0).double()
    power = torch.fft.rfft2(noise).abs().square().mean((0, 1))[0]
    assert 3 < float(power[2] / power[4]) < 5  # amplitude 1/frequency
    assert noise.flatten(1).std(1).min() > 10
    assert not torch.equal(noise[0], noise[1])
