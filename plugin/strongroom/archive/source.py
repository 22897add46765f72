"""Ordinary models, as the author has them: a ``.mar`` (zip or tar.gz) or a folder.

Reads in O(chunk) memory and writes nothing. What cannot be sealed is refused here, with the reason.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO

from strongroom.archive import keyfile
from strongroom.archive.index import ENTRY_LIMIT, MEMBER_LIMIT, check_names
from strongroom.archive.manifest import MANIFEST
from strongroom.errors import ArchiveMalformed, SealRefused

UNREADABLE = (
    OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile, tarfile.TarError,
)  # fmt: skip
"""What the standard library raises for damaged or exotic archives (`NotImplementedError` is a RuntimeError)."""

PACKAGE_AGAIN = "is it whole? package the model again, or copy it again"

SMALL_LIMIT = 1 << 20
"""A manifest or configuration that is read whole is at most this long."""

SMALL_COUNT = 16
"""At most so many of them are kept in memory while a tar is listed."""


class Source(ABC):
    """The files of one ordinary model, in an order of its own; names are checked, sizes are known."""

    sizes: dict[str, int]

    def __init__(self, *places: Path) -> None:
        self.places = places
        """The files and folders that it reads."""
        self.consulted: dict[str, bytes] = {}
        """What was read before sealing, and has to be what is then sealed."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of the input."""

    def ordered(self) -> list[str]:
        """All names in the order in which `read` is asked for them: largest first (section 6)."""
        return sorted(self.sizes, key=lambda name: (-self.sizes[name], name.encode()))

    @abstractmethod
    def read(self, names: list[str], take: Callable[[str, IO[bytes]], None]) -> None:
        """Hand an open stream of each named file to `take`, in any order, each once."""

    def small(self, name: str) -> bytes:
        """One small file, whole; raises `SealRefused`. `consulted` remembers it."""
        self.consulted[name] = self._whole(name)
        return self.consulted[name]

    def _whole(self, name: str) -> bytes:
        if self.sizes[name] > SMALL_LIMIT:
            raise SealRefused(f"{name} has {self.sizes[name]} bytes; at most {SMALL_LIMIT} make sense")
        found = []
        self.read([name], lambda _, stream: found.append(stream.read(SMALL_LIMIT + 1)))
        if len(found) != 1 or len(found[0]) != self.sizes[name]:
            raise changed(name)
        return found[0]

    def _check(self) -> None:
        if not self.sizes:
            raise SealRefused("there is no file in it")
        if len(self.sizes) >= ENTRY_LIMIT:
            raise SealRefused(f"{len(self.sizes)} files; an archive holds less than {ENTRY_LIMIT}")
        self._refuse_kinds()
        try:
            check_names(self.sizes)
        except ArchiveMalformed as error:
            raise SealRefused(f"cannot be sealed as it is: {error}", hint="rename that file") from error
        for name, size in self.sizes.items():
            if size > MEMBER_LIMIT:
                raise SealRefused(f"{name} has {size} bytes, the limit is {MEMBER_LIMIT}")

    def _refuse_kinds(self) -> None:
        if "WAR-INF/MANIFEST.json" in self.sizes:
            raise SealRefused(
                "a workflow archive cannot be sealed: the server would pass data between its models in the clear",
                hint="seal each model by itself",
            )
        if any(name.casefold().startswith("sealed-inf/") for name in self.sizes):
            raise SealRefused("it is sealed already", hint="seal the original again, or use `strongroom rewrap`")
        if MANIFEST not in self.sizes:
            raise SealRefused(
                f"no {MANIFEST} in it, so this is no model archive",
                hint="package the model with torch-model-archiver first, or use `strongroom archive`",
            )


def changed(name: str) -> SealRefused:
    """The error for an input that is not what it was a moment ago."""
    return SealRefused(
        f"{name} changed while it was being sealed", hint="seal again, from a copy that nobody writes to"
    )


def normal(name: str) -> str:
    """The NFC spelling that the index stores."""
    return unicodedata.normalize("NFC", name)


def _put(sizes: dict[str, int], name: str, size: int) -> str:
    spelled = normal(name)
    if spelled in sizes:
        raise SealRefused(f"{spelled!a} stands twice in it", hint="package the model again")
    sizes[spelled] = size
    return spelled


class ZipSource(Source):
    """A ``.mar`` as torch-model-archiver's formats ``default`` and ``zip-store`` write it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except UNREADABLE as error:
            raise SealRefused(f"{path} cannot be read: {error}", hint=PACKAGE_AGAIN) from error
        self.sizes = {}
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.filename.endswith("/"):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise SealRefused(f"{info.filename!a} is no regular file", hint="package the file it stands for")
            if info.flag_bits & 1:
                raise SealRefused(f"{info.filename!a} is encrypted by zip", hint="package the plain file")
            if info.orig_filename != info.filename:
                raise SealRefused(f"{info.orig_filename!a} is no name that all zip readers read alike")
            self._infos[_put(self.sizes, info.filename, info.file_size)] = info
        self._check()

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()

    def read(self, names: list[str], take: Callable[[str, IO[bytes]], None]) -> None:
        """In the order asked for."""
        for name in names:
            try:
                with self._zip.open(self._infos[name]) as stream:
                    take(name, stream)
            except UNREADABLE as error:
                raise SealRefused(f"{name} cannot be read out of the archive: {error}", hint=PACKAGE_AGAIN) from error


class TarSource(Source):
    """A tar.gz as the archiver's format ``tgz`` writes it: all files below one folder. Read twice."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        self.sizes = {}
        names: list[tuple[str, int]] = []
        small: dict[str, bytes] = {}
        with self._reading():
            for member, tar in self._members():
                name = member.name.removeprefix("./")
                names.append((name, member.size))
                # What is needed before sealing is kept now: finding it again would mean unpacking all once more.
                wanted = name.endswith((MANIFEST, ".yaml", ".yml")) and member.size <= SMALL_LIMIT
                if wanted and len(small) < SMALL_COUNT:
                    stream = tar.extractfile(member)
                    small[name] = b"" if stream is None else stream.read()
        prefix = next((name.removesuffix(MANIFEST) for name, _ in names if name.endswith(MANIFEST)), "")
        if prefix.count("/") > 1 or any(not name.startswith(prefix) for name, _ in names):
            raise SealRefused(f"{path}: its files do not lie in one folder")
        self._prefix = prefix
        self._small = {normal(name.removeprefix(prefix)): octets for name, octets in small.items()}
        for name, size in names:
            _put(self.sizes, name.removeprefix(prefix), size)
        self._check()

    def close(self) -> None:
        """Nothing stays open between passes."""

    def ordered(self) -> list[str]:
        """The tar's own order."""
        return list(self.sizes)

    def _whole(self, name: str) -> bytes:
        return self._small[name] if name in self._small else super()._whole(name)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Around every step through the tar: it may break off between two members, and within one."""
        try:
            yield
        except UNREADABLE as error:
            raise SealRefused(f"{self._path} cannot be read: {error}", hint=PACKAGE_AGAIN) from error

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        with tarfile.open(self._path, "r|gz") as tar:
            for member in tar:
                if member.isdir():
                    continue
                if not member.isreg():
                    raise SealRefused(f"{member.name!a} is no regular file", hint="package the file it stands for")
                yield member, tar

    def read(self, names: list[str], take: Callable[[str, IO[bytes]], None]) -> None:
        """In the order of the tar, since it can only be read forwards."""
        wanted = set(names)
        with self._reading():
            for member, tar in self._members():
                name = normal(member.name.removeprefix("./").removeprefix(self._prefix))
                if name in wanted:
                    wanted.remove(name)
                    stream = tar.extractfile(member)
                    if stream is None or member.size != self.sizes[name]:
                        raise changed(name)
                    take(name, stream)
        for name in wanted:
            raise changed(name)


class FilesSource(Source):
    """Files where they lie on the disk, each under its name in the model, and small ones made in memory."""

    def __init__(
        self, paths: Mapping[str, Path], made: Mapping[str, bytes] | None = None, *, folder: Path | None = None
    ) -> None:
        super().__init__(*([folder] if folder is not None else paths.values()))
        self._paths: dict[str, Path] = {}
        self._made: dict[str, bytes] = {}
        self.sizes = {}
        for name, path in paths.items():
            try:
                status = path.lstat()
            except OSError as error:
                raise SealRefused(f"{path}: {error.strerror}") from error
            if not stat.S_ISREG(status.st_mode):
                raise SealRefused(f"{path} is no regular file", hint="put the file itself there, not a link")
            self._paths[_put(self.sizes, name, status.st_size)] = path
        for name, octets in (made or {}).items():
            self._made[_put(self.sizes, name, len(octets))] = octets
        self._check()

    def close(self) -> None:
        """Nothing stays open."""

    def read(self, names: list[str], take: Callable[[str, IO[bytes]], None]) -> None:
        """In the order asked for."""
        for name in names:
            if name in self._made:
                take(name, BytesIO(self._made[name]))
                continue
            try:
                with _open(self._paths[name], os.O_NOFOLLOW) as stream:
                    before = os.fstat(stream.fileno())
                    take(name, stream)
                    after = os.fstat(stream.fileno())
            except OSError as error:
                raise SealRefused(f"{self._paths[name]}: {error.strerror}") from error
            # A writer that keeps the size is seen by the time of its last write, if at all.
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                raise changed(name)


def files_below(folder: Path, *, hidden: bool = True) -> dict[str, Path]:
    """Every file below a folder by its relative name, without Python's and macOS's own folders.

    `hidden` says whether folders whose name begins with a dot are looked into.
    """
    found: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, onerror=_walk_failed):
        folders[:] = sorted(
            each for each in folders if each not in {"__pycache__", "__MACOSX"} and (hidden or not each.startswith("."))
        )
        links = [each for each in folders if Path(root, each).is_symlink()]
        for each in [*links, *files]:
            found[Path(root, each).relative_to(folder).as_posix()] = Path(root, each)
    return found


def _walk_failed(error: OSError) -> None:
    raise SealRefused(f"{error.filename}: {error.strerror}") from error


def _open(path: Path, flags: int = 0) -> IO[bytes]:
    """A file, unbuffered; raises `SealRefused` for what is none."""
    file = keyfile.open_regular(path, flags)
    if file is None:
        raise SealRefused(f"{path} is no regular file", hint="write it to a file first")
    return file


def open_source(path: Path) -> Source:
    """The reader for what lies at `path`; raises `SealRefused`."""
    if path.is_dir():
        return FilesSource(files_below(path), folder=path)
    try:
        with _open(path) as file:
            magic = file.read(4)
    except OSError as error:
        raise SealRefused(f"{path}: {error.strerror}") from error
    if magic[:2] == b"PK":
        return ZipSource(path)
    if magic[:2] == b"\x1f\x8b":
        return TarSource(path)
    raise SealRefused(
        f"{path} is neither a zip nor a tar.gz nor a folder", hint="torch-model-archiver writes what can be sealed"
    )
