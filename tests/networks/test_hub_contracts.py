"""Data contracts read from what timm, torchvision and transformers write down (none of them is needed)."""

from types import SimpleNamespace

import pytest
import torch

from tangentune.errors import BackboneError
from tangentune.networks.hubs import card_licence, hf_contract, timm_contract, torchvision_contract

VIT = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def test_timm_contract_keeps_every_field():
    config = {"input_size": (3, 96, 96), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    config |= {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center"}
    contract = timm_contract(config, "mit", "there")
    assert contract.to_dict() == {
        "input_size": (3, 96, 96),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "interpolation": "bilinear",
        "crop": 0.9,
        "licence": "mit",
        "source": "there",
        "sha256": None,
    }
    assert timm_contract(config | {"crop_mode": "squash"}, None, "").crop is None
    assert timm_contract(config | {"interpolation": "random"}, None, "").interpolation == "bicubic"


def test_torchvision_contract_turns_two_sizes_into_a_share():
    transforms = SimpleNamespace(
        crop_size=[224],
        resize_size=[256],
        mean=[0.1, 0.2, 0.3],
        std=[1, 1, 1],
        interpolation=SimpleNamespace(value="bilinear"),
    )
    contract = torchvision_contract(transforms, "url")
    assert contract.input_size == (3, 224, 224)
    assert (contract.crop, contract.interpolation, contract.mean) == (0.875, "bilinear", (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("fields", "size", "crop"),
    [
        ({"size": {"height": 48, "width": 64}}, (48, 64), None),
        ({"size": 48}, (48, 48), None),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, (224, 224), 0.875),
        (
            {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 56, "width": 48}},
            (56, 48),
            0.75,
        ),
        ({"size": {"shortest_edge": 64}, "do_center_crop": False, "crop_size": 32}, (64, 64), 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), 0.875),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), None),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 64}, (64, 64), 1.0),
    ],
)
def test_sizes_of_transformers_preprocessors(fields, size, crop):
    contract = hf_contract(VIT | fields, 3, None, "")
    assert contract.input_size == (3, *size)
    assert contract.crop == crop


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True},
        {"rescale_factor": 1 / 128},
        {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [58.0] * 3},
        {"include_top": True},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
)
def test_normalisation_of_transformers_preprocessors(fields):
    fields = VIT | fields
    byte = torch.arange(256, dtype=torch.float64)
    # As transformers does it, step by step.
    expected = byte
    if fields.get("do_rescale", True):
        expected = expected * fields.get("rescale_factor", 1 / 255) - (1 if fields.get("rescale_offset") else 0)
    if fields.get("do_normalize", True):
        mean, std = torch.tensor(fields["image_mean"]).max(), torch.tensor(fields["image_std"]).max()
        expected = (expected - mean) / std
        if fields.get("include_top"):
            expected = expected / std
    contract = hf_contract(fields, 3, None, "")
    got = (byte / 255 - contract.mean[1]) / contract.std[1]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_preprocessors_that_fix_nothing_are_refused():
    with pytest.raises(BackboneError, match="fixes no height and width"):
        hf_contract(VIT | {"size": {"longest_edge": 64}}, 3, None, "")
    with pytest.raises(BackboneError, match="no image_mean"):
        hf_contract({"size": 32}, 3, None, "")


def test_resampling_numbers_and_licence():
    assert hf_contract(VIT | {"resample": 1}, 3, "mit", "").interpolation == "lanczos"
    assert hf_contract(VIT, 3, "mit", "").licence == "mit"
    assert card_licence("# no header\nlicense: mit") is None
    assert card_licence("---\ntags: x\n---\nlicense: mit") is None
