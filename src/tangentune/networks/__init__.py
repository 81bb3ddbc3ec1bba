"""Pre-trained networks: loading them, which parameters move, heads, leaky activations, and hubs."""
