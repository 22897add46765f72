"""A TDX guest's measurement registers as the kernel shows them (Linux 6.16).

Files under ``/sys/devices/virtual/misc/tdx_guest/measurements`` (Documentation/ABI/testing/
sysfs-devices-virtual-misc-tdx_guest): reading one gives its 48 bytes; writing 48 bytes at once to an RTMR extends
it. Both go to the TDX module without the host in between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

MEASUREMENTS = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
SIZE = 48
CONFIG_ID = "mrconfigid"


def runtime_register(index: int) -> str:
    """The file's name of RTMR `index`."""
    return f"rtmr{index}:sha384"


class Registers(Protocol):
    """The directory as operations: sysfs itself, or a double of it in tests. Raise `OSError`."""

    def there(self, name: str) -> bool:
        """Whether this kernel shows the register."""

    def writable(self, name: str) -> bool:
        """Whether this process may extend it."""

    def read(self, name: str) -> bytes:
        """Its value."""

    def write(self, name: str, octets: bytes) -> None:
        """Extend it; in one piece."""


class Sysfs:
    """`Registers` of the running kernel."""

    def __init__(self, directory: Path = MEASUREMENTS) -> None:
        self._directory = directory

    def there(self, name: str) -> bool:
        """Whether the file exists."""
        return (self._directory / name).is_file()

    def writable(self, name: str) -> bool:
        """By the file's mode and this process's rights."""
        return os.access(self._directory / name, os.W_OK)

    def read(self, name: str) -> bytes:
        """The file's bytes."""
        return (self._directory / name).read_bytes()

    def write(self, name: str, octets: bytes) -> None:
        """One write: the kernel takes no part of a digest."""
        descriptor = os.open(self._directory / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, octets)
        finally:
            os.close(descriptor)
