"""Source pictures as a prior: how much they count, what stands for what, and exact leave-one-out."""
