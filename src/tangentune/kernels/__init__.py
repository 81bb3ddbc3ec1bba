"""From pictures to kernels: Gram matrices, metrics, the feature map, and the choice among them."""
