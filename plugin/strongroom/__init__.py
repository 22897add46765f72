"""strongroom: confidential execution for the model servers people already run.

    strongroom.seal(source, output, author=…)          an ordinary model becomes a sealed archive
    strongroom.open_archive(path, key, authors=…)      read one in Python
    strongroom.client.adapter.SealedAdapter            talk to a sealed model with requests

The first two are loaded when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strongroom.models import SealedModel, open_archive, seal

__version__ = "0.1.0"
__all__ = ["SealedModel", "__version__", "open_archive", "seal"]


def __getattr__(name: str) -> Any:
    if name in ("SealedModel", "open_archive", "seal"):
        from strongroom import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
