"""Choosing pre-training pictures for a target set by unbalanced optimal transport, and what it is compared with.

Source: Liu et al. 2022, "Improved Fine-tuning by Leveraging Pre-training Data" (NeurIPS).
"""

from tangentune.transport.sinkhorn import TransportPlan, unbalanced_sinkhorn

__all__ = ["TransportPlan", "unbalanced_sinkhorn"]
