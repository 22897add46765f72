"""An archive on its way to the disk: what may take its name, the draft, and the name at last."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from strongroom.archive import keyfile
from strongroom.archive.header import Header
from strongroom.archive.outer import HEADER, PAYLOAD, SLOTS, Outer
from strongroom.archive.storage import check_listing
from strongroom.errors import ArchiveError, SealRefused


def check_output(output: Path, places: Iterable[Path], *, directory: bool, overwrite: bool) -> None:
    """Raise `SealRefused` unless an archive may take this name; `places` are what it is made from, and stay."""
    if not output.name or output.name == "..":
        raise SealRefused(f"{str(output)!r} is no name for an archive", hint="say -o SEALED.mar")
    there = os.path.lexists(output)
    try:
        os.lstat(_draft_name(output))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SealRefused(f"{output} cannot be written: {error.strerror}", hint="choose another name") from error
    own = output.parent.resolve() / output.name
    for place in places:
        source = place.resolve()
        same = os.path.exists(output) and os.path.exists(place) and os.path.samefile(output, place)
        if same or own.is_relative_to(source) or source.is_relative_to(own):
            raise SealRefused(
                f"{output} is, holds or lies in {place}, which is being sealed",
                hint="choose an output elsewhere, by -o SEALED.mar",
            )
    if there and not overwrite:
        raise SealRefused(f"{output} exists already", hint="choose another name, or say --force")
    if there:
        _check_kind(output, directory=directory)


def _check_kind(output: Path, *, directory: bool) -> None:
    """A link may go; else a file makes room for a file, and a sealed folder for a sealed folder, and nothing else."""
    found = os.lstat(output).st_mode
    if stat.S_ISLNK(found):
        return
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(found):
        raise SealRefused(
            f"{output} exists, and is no {'folder' if directory else 'file'}: it is not replaced",
            hint="choose another name",
        )
    if directory:
        try:
            check_listing(output)
        except ArchiveError as error:
            raise SealRefused(
                f"{output} is a folder that `strongroom seal` did not write: it is not replaced",
                hint="choose another name, or move that folder away yourself",
            ) from error


def _draft_name(output: Path) -> Path:
    return output.with_name(f".{output.name}.{secrets.token_hex(6)}.part")


class Draft:
    """The output without a name, or under one that nobody takes for an archive, until `publish`."""

    def __init__(self, output: Path, clear: Mapping[str, bytes], header: Header, *, directory: bool) -> None:
        self._output, self._clear, self._directory = output, clear, directory
        self._header_length = len(header.serialise())
        self._layout = self._outer(header)
        self._path = _draft_name(output)
        self.payload_at = 0 if directory else self._layout.payload_at
        self.size = 0

    def _outer(self, header: Header) -> Outer:
        core = header.core
        part = core.payload_length + core.digests_length
        return Outer(self._clear, header.serialise(), generation=core.generation, payload=part, crc=core.payload_crc)

    def __enter__(self) -> Draft:
        try:
            if self._directory:
                for folder in (self._path, self._path / "MAR-INF", self._path / "SEALED-INF"):
                    folder.mkdir(mode=0o755)
            self.payload = self._open()
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error
        return self

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if not self._directory:
            try:
                # A file without a name is gone when we are killed, however large it has become.
                return os.open(self._output.parent, flags | os.O_TMPFILE, 0o644)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                    raise
        path = self._path / PAYLOAD if self._directory else self._path
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)

    def __exit__(self, *_: object) -> None:
        os.close(self.payload)
        if self._directory:
            shutil.rmtree(self._path, ignore_errors=True)
        else:
            self._path.unlink(missing_ok=True)

    def complete(self, header: Header, digests: bytes, slots: bytes) -> None:
        """Write everything around the payload, and bring it to the disk."""
        outer = self._outer(header)
        if (outer.payload_at, len(header.serialise())) != (self._layout.payload_at, self._header_length):
            raise SealRefused("the header changed its size while the payload was written")
        try:
            _write_at(self.payload, digests, self.payload_at + header.core.payload_length)
            # Zeros are left out: the file is new, so they are holes, and small models stay small on the disk.
            used, area = _without_zeros(slots), 2 * len(slots)
            if self._directory:
                for name, octets in {**self._clear, HEADER: header.serialise(), SLOTS: used}.items():
                    _write_new(self._path / name, octets, size=area if name == SLOTS else None)
                self.size = sum(each.stat().st_size for each in self._path.rglob("*") if each.is_file())
                os.fsync(self.payload)
                for folder in (self._path, self._path / "MAR-INF", self._path / "SEALED-INF"):
                    keyfile.sync_folder(folder)
            else:
                _write_at(self.payload, outer.tail, outer.tail_at)
                _write_at(self.payload, outer.before_slots + used, 0)
                _write_at(self.payload, outer.before_payload, outer.slots_at + area)
                self.size = outer.size
                os.fsync(self.payload)
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error

    def publish(self, *, overwrite: bool) -> None:
        """Give it its final name."""
        try:
            if not self._directory and not self._path.exists():
                # Without a folder's descriptor Python would call link(), which does not follow the link in /proc.
                own = f"/proc/self/fd/{self.payload}"
                os.link(own, self._path, src_dir_fd=self.payload, follow_symlinks=True)
            if self._directory:
                self._publish_folder(overwrite=overwrite)
            elif overwrite:
                os.replace(self._path, self._output)
            else:
                keyfile.take_name(self._path, self._output)
            keyfile.sync_folder(self._output.parent)
        except FileExistsError as error:
            raise SealRefused(f"{self._output} exists already", hint="say --force to replace it") from error
        except OSError as error:
            raise SealRefused(f"{self._output} cannot be written: {error.strerror}") from error

    @property
    def published(self) -> bool:
        """Whether what bears the final name is this draft; True also where nobody can tell."""
        try:
            found = os.stat(self._output / PAYLOAD if self._directory else self._output)
            return os.path.samestat(found, os.fstat(self.payload))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _publish_folder(self, *, overwrite: bool) -> None:
        # A folder cannot replace another one in one step, so the old one steps aside first.
        aside = self._path.with_suffix(".old")
        try:
            if overwrite and os.path.lexists(self._output):
                _check_kind(self._output, directory=True)
                os.rename(self._output, aside)
            elif os.path.lexists(self._output):
                raise FileExistsError
            os.rename(self._path, self._output)
        except BaseException:
            if os.path.lexists(aside) and not os.path.lexists(self._output):
                os.rename(aside, self._output)
            raise
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def _without_zeros(octets: bytes, page: bytes = bytes(4096)) -> bytes:
    """Without the zeros at its end: by pages first, since `rstrip` looks at each byte."""
    while octets.endswith(page):
        octets = octets[: -len(page)]
    return octets.rstrip(b"\0")


def _write_at(descriptor: int, octets: bytes, at: int) -> None:
    view = memoryview(octets)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _write_new(path: Path, octets: bytes, *, size: int | None = None) -> None:
    with path.open("xb") as file:
        file.write(octets)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
