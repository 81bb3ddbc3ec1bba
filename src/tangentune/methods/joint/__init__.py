"""Joint fine-tuning on target pictures and on pre-training (source) pictures chosen for them.

Liu et al., "Improved Fine-tuning by Leveraging Pre-training Data", NeurIPS 2022: one backbone, a head for each
set of labels, the loss of the target plus a multiple of the source's.
"""

from tangentune.methods.joint.joint import JointTuned, joint_fine_tune
from tangentune.methods.joint.settings import JointSettings, PseudoLabels, SourceLabels

__all__ = ["JointSettings", "JointTuned", "PseudoLabels", "SourceLabels", "joint_fine_tune"]
