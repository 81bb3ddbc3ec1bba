"""Choosing pre-training pictures for a target set by unbalanced optimal transport, and what it is compared with.

Source: Liu et al. 2022, "Improved Fine-tuning by Leveraging Pre-training Data" (NeurIPS).
"""

from tangentune.methods.source_selection.manifest import (
    Manifest,
    SelectedPictures,
    load_selected,
    read_manifest,
    write_manifest,
)
from tangentune.methods.source_selection.select import Selection, select_source
from tangentune.methods.source_selection.sinkhorn import TransportPlan, unbalanced_sinkhorn

__all__ = [
    "Manifest",
    "SelectedPictures",
    "Selection",
    "TransportPlan",
    "load_selected",
    "read_manifest",
    "select_source",
    "unbalanced_sinkhorn",
    "write_manifest",
]
