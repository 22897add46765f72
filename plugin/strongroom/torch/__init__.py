"""The one room that imports torch: mapped weights, their way to a GPU, and sealed checkpoints.

`map_models` is for a process that serves or loads models; `save` and `load` are for training inside a TEE.
"""

from strongroom.torch.checkpoint import CHECKPOINT, load, load_state, save
from strongroom.torch.mapping import map_models

__all__ = ["CHECKPOINT", "load", "load_state", "map_models", "save"]
