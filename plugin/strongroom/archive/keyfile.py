"""Key files: one line of tagged text, and comments (docs/format.md sections 5.3 and 10.1).

Private files are written with mode 0600 under their final name at once, and refused when group or
others could read them. What the fields mean is the business of who calls.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import IO

from strongroom.encoding import b64url, unb64url
from strongroom.errors import KeyFileInvalid, MalformedInput

_PUBLIC = re.compile(rb"^strongroom-(author|recipient)-1:", re.MULTILINE)

LIMIT = 1 << 16
"""No key file is longer, in bytes."""


def compose(tag: str, *fields: str, comments: tuple[str, ...] = ()) -> str:
    """The text of a key file: comment lines, then ``tag:field:…``."""
    return "".join(f"# {line}\n" for line in comments) + ":".join((tag, *fields)) + "\n"


def fields_of(text: str, tag: str, count: int, *, where: str) -> tuple[str, ...]:
    """The `count` fields after `tag` on the only line that is no comment.

    Raises `KeyFileInvalid`; no error text repeats the line, which may be a secret.
    """
    # Section 5.3 says what ends a line; Python's own splitlines() knows more ends, even within a comment.
    lines = [line for line in (each.removesuffix("\r") for each in text.split("\n")) if line and line[0] != "#"]
    if len(lines) != 1:
        raise KeyFileInvalid(f"{where}: one line with a key is expected, found {len(lines)}")
    found, *fields = lines[0].split(":")
    if found != tag:
        known = found if found.startswith("strongroom-") and len(found) < 64 else "something else"
        raise KeyFileInvalid(f"{where}: {tag} is expected, found {known}", hint=_hint(tag, found))
    if len(fields) != count:
        raise KeyFileInvalid(f"{where}: {count} fields after {tag} are expected, found {len(fields)}")
    return tuple(fields)


def _hint(wanted: str, found: str) -> str:
    if wanted == "strongroom-author-secret-1" and found == "strongroom-author-1":
        return "sealing signs, so it needs the private key: pass author.key, made by `strongroom keygen author`"
    if wanted == "strongroom-author-1" and found == "strongroom-author-secret-1":
        return "verifying needs the public key only: pass author.pub, and keep author.key to yourself"
    return ""


def octets_of(field: str, size: int, *, where: str) -> bytes:
    """Base64url of exactly `size` octets; raises `KeyFileInvalid`."""
    try:
        octets = unb64url(field, where=where)
    except MalformedInput as error:
        raise KeyFileInvalid(f"{where}: the key is not base64url") from error
    if len(octets) != size:
        raise KeyFileInvalid(f"{where}: a key of {size} bytes is expected, found {len(octets)}")
    return octets


def text_of(octets: bytes) -> str:
    """The inverse of `octets_of`."""
    return b64url(octets)


def read_public(path: Path | str, *, made_by: str = "") -> str:
    """The text of a public key file; raises `KeyFileInvalid`, with the verb that makes one where there is no file."""
    return _read(Path(path), private=False, made_by=made_by)


def read_private(path: Path | str, *, made_by: str = "") -> str:
    """As `read_public`, of a private key file that only its owner can read."""
    return _read(Path(path), private=True, made_by=made_by)


def _read(path: Path, *, private: bool, made_by: str) -> str:
    try:
        with path.open("rb") as file:  # which may be a pipe: a secret need not lie on a disk
            status = os.fstat(file.fileno())
            octets = file.read(LIMIT + 1)
    except OSError as error:
        absent = made_by and isinstance(error, FileNotFoundError)
        hint = f"`{made_by}` makes one" if absent else "check the path and its rights"
        raise KeyFileInvalid(f"{path}: {error.strerror}", hint=hint) from error
    if len(octets) > LIMIT:
        raise KeyFileInvalid(f"{path} is longer than any key file")
    # A public key passed for a private one is told so later, instead of being given stricter rights.
    exposed = private and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077
    if exposed and not _PUBLIC.search(octets):
        raise KeyFileInvalid(
            f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})", hint=f"chmod 600 {path}"
        )
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise KeyFileInvalid(f"{path} is not a key file") from error


def open_regular(path: Path, flags: int = 0) -> IO[bytes] | None:
    """A file, unbuffered, or None for what is no regular one: a pipe's other end is not waited for.

    Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    return None


def write_private(path: Path | str, text: str) -> None:
    """Write a secret with mode 0600, whole or not at all; an existing file is never replaced.

    Raises `KeyFileInvalid`.
    """
    _write(Path(path), text, 0o600)


def write_public(path: Path | str, text: str) -> None:
    """As `write_private`, with mode 0644."""
    _write(Path(path), text, 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            take_name(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise KeyFileInvalid(f"{path} exists already", hint="choose another name; keys are not overwritten") from error
    except OSError as error:
        raise KeyFileInvalid(f"{path}: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk: a file that was synced has its name after a power cut only then."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def take_name(draft: Path, path: Path) -> None:
    """Give a finished file its name; raises `FileExistsError` where the name is taken.

    A hard link fails there, in one step. Where the file system has none, a rename that replaces nothing does
    the same. Where there is neither, the name is reserved by an empty file, which only we can have made, and
    that one is replaced.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        if not _renamed(draft, path):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            os.replace(draft, path)


_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


def _renamed(draft: Path, path: Path) -> bool:
    """renameat2(2), which Python lacks; False where C library, kernel or file system lack it too, or it fails."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return False
