"""Strided 1 x 1 convolutions in channels-last order, whose weight gradient in torch's oneDNN reads what is not there.

All ways to a weight gradient run in a process of their own, for where one goes wrong the process dies.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from killing import child, wait

SETUP = """
import copy, numpy as np, torch
from torch import nn
from torch.nn import functional as F
from tangentune import Backbone, Linearization, TangentClassifier, baselines, gradient_features, lqf
from tangentune.networks.parameters import used_parameters
from tangentune.pictures.pictures import Pictures

torch.manual_seed(0)
X = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
Y = np.arange(8) % 2

class Stem(nn.Module):
    "The first layer of mobileone, repvgg and fastvit: two branches of one stride, one of them 1 x 1."
    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 1, 2)
        self.norm, self.scale = nn.BatchNorm2d(8), nn.Parameter(torch.ones(8, 1, 1))
        self.second = nn.Conv2d(8, 16, 1, 2, bias=False)
    def forward(self, x):
        x = torch.relu(self.norm(self.wide(x) + self.scale * self.point(x)))
        return torch.tanh(self.second(x)).mean((2, 3))

class Standardised(nn.Conv2d):
    "A weight that no layer rule sees."
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(0), self.bias, self.stride)

def own(net):
    return Backbone(net, input_size=(3, 64, 64), mean=(.5,) * 3, std=(.25,) * 3)

net = Stem()
backbone, exact = own(net), own(copy.deepcopy(net).double())
pictures = Pictures(torch.from_numpy(X).permute(0, 3, 1, 2), Y, [str(i) for i in range(8)])
x = next(pictures.batches(backbone.contract, 8)).contiguous(memory_format=torch.channels_last)

def near(a, b, rtol=1e-3):
    for name in b:
        difference = (a[name].double() - b[name]).norm() / b[name].norm().clamp_min(1e-9)
        assert difference < rtol, (name, float(difference))
"""

WAYS = {
    "estimator": """
fits = [TangentClassifier(b, damping=.1, metric_power=0, body_scale=1., normalize=False, probe_space="isotropic")
        .fit(X, Y) for b in (backbone, exact)]
np.testing.assert_allclose(fits[0].kernel_, fits[1].kernel_, rtol=1e-3)
np.testing.assert_allclose(fits[0].loo_predictions_, fits[1].loo_predictions_, rtol=1e-2, atol=1e-3)
""",
    "outer steps": "TangentClassifier(backbone, damping=.1, outer_steps=4).fit(X, Y)",
    "which parameters are used": """
assert len(used_parameters(backbone.module, backbone.feature_function, x)) == 8
""",
    "linearization": """
lin = Linearization(own(net)).to(memory_format=torch.channels_last)
r = torch.randn(8, 16)
truth = Linearization(exact).vjp(x.double(), r.double())
near(lin.vjp(x, r), truth)
near(lin.step(x, lin.zeros(), lambda f, jv: r)[2], truth)
lin(x).backward(r)
near({n: p.grad for n, p in lin.tangent.named_parameters()}, truth)
""",
    "fine-tuning": """
for batchnorm in ("eval", "train"):
    baselines.fine_tune(backbone, pictures, baselines.FineTuneSettings(epochs=1, batchnorm=batchnorm))
""",
    "lqf": "lqf.fit_lqf(backbone, pictures, lqf.LQFSettings(epochs=1))",
    "gradient features": """
settings = gradient_features.GradientFeatureSettings(cut="point", epochs=1, cache=False)
gradient_features.fit_gradient_features(backbone, pictures, settings)
""",
    "generic rules": """
other = copy.deepcopy(net)
other.point = Standardised(3, 8, 1, 2)
fits = [TangentClassifier(b, damping=.1, metric_power=0, body_scale=1., normalize=False, probe_space="isotropic")
        .fit(X, Y) for b in (own(other), own(copy.deepcopy(other).double()))]
np.testing.assert_allclose(fits[0].kernel_, fits[1].kernel_, rtol=1e-3)
""",
    "float32 proof": """
class Fixed(Stem):
    def forward(self, x):
        return super().forward(x.float())
fixed = Fixed(); fixed.load_state_dict(net.state_dict())
clf = TangentClassifier(own(fixed), damping=.1, outer_steps=0).fit(X, Y)
assert {"point.weight", "second.weight"} <= clf.model_.body.keys()
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tries everything in a child process")
def test_weight_gradients_of_strided_pointwise_convolutions(tmp_path: Path) -> None:
    parts = [f"print({way!r}, flush=True)\n{code}" for way, code in WAYS.items()]
    code, told = "\n".join([SETUP, *parts, "print('whole')"]), tmp_path / "told.txt"
    status = wait(child(lambda: exec(code, {}), told), 600)
    said = told.read_text(errors="replace")
    assert said.endswith("whole\n"), f"status {status} after {said[-2000:]}"
