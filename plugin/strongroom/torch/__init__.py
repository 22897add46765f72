"""The one room that imports torch: mapped weights, their way to a GPU, and sealed checkpoints.

`map_models` is for a process that serves or loads models; `save` and `load` are for training inside a TEE, and
are imported when they are first named, since a worker needs neither.
"""

from typing import TYPE_CHECKING, Any

from strongroom.torch.mapping import map_models

if TYPE_CHECKING:
    from strongroom.torch.checkpoint import CHECKPOINT, load, load_state, save

__all__ = ["CHECKPOINT", "load", "load_state", "map_models", "save"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from strongroom.torch import checkpoint

    return getattr(checkpoint, name)
