"""The handler that every sealed archive names: stock TorchServe imports it from the installed package.

TorchServe wants a module-level ``handle``. The user's own handler is inside the archive and runs unchanged.
"""

from strongroom.adapters.torchserve.handler import handle

__all__ = ["handle"]
