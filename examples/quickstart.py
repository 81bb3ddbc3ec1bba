"""Fine-tune MobileNetV2 on a folder of real microscope pictures: the code of the README."""

from importlib.resources import files

from tangentune import TangentClassifier

pictures = files("planktonclass") / "resources" / "demo-images"  # any folder of class/picture.jpg
model = TangentClassifier("mobilenet_v2", input_size=64).fit(pictures)
probe = TangentClassifier("mobilenet_v2", input_size=64, subset="none").fit(pictures)
print(f"{len(model.ids_)} pictures of {len(model.classes_)} classes, {len(model.selection_)} kernels tried")
print(f"leave-one-out accuracy {model.loo_score_:.3f}, of a linear probe {probe.loo_score_:.3f}")
most = sorted(model.block_shares_, key=lambda block: -model.block_shares_[block])[:3]
print("moved most:", ", ".join(f"{block} {model.block_shares_[block]:.0%}" for block in most))
said, sure = model.classes_[model.loo_proba_.argmax(1)], model.loo_proba_.max(1)
for i in sorted((said != model.targets_).nonzero()[0], key=lambda i: -sure[i])[:3]:
    print(f"look again at {model.ids_[i][-12:]}: labelled {model.targets_[i]}, {sure[i]:.0%} {said[i]}")
