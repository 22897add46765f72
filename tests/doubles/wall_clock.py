"""The host's hand on the wall clock of a process tree (wall_clock.c, preloaded)."""

from __future__ import annotations

import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """A library in `folder`, and the offset that every process which preloads it adds to its wall clock."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock-offset"
        self.file.write_bytes(bytes(8))
        self.shim = folder / "wall_clock.so"
        flags = ["-shared", "-fPIC", "-O2", f'-DOFFSET_FILE="{self.file}"', "-o", str(self.shim), str(SOURCE)]
        subprocess.run(["gcc", *flags], check=True)
        with self.file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), 8)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.shim)}

    def set(self, seconds: float) -> None:
        """So many seconds ahead of the true time from now on, or behind it."""
        self._page[:] = struct.pack("=q", int(seconds * 1e9))
