"""The root key of a broker's store, and who keeps it (docs/release.md section 13).

A provider (`strongroom.hookspecs.RootKeyProvider`) turns what stands on disk into 32 bytes, once, when the broker
starts. Here are the two that need no device: a file in the clear (for development, owner-readable only) and a file
wrapped under a passphrase. All are offered by `rootkeys`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.archive.keyfile import sync_folder
from strongroom.encoding import Fields, b64url, labelled, parse_json
from strongroom.errors import KeyFileInvalid, MalformedInput

ARGON2_LANES = 4
ARGON2_ITERATIONS = 3
ARGON2_MEMORY_KIB = 65536
"""RFC 9106 section 4, second recommended option: 64 MiB, three passes, four lanes."""

_FORMAT = "root-key/1"


def write_private(path: Path, octets: bytes) -> None:
    """Create a file that only its owner reads; an existing one is an error, never overwritten."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyFileInvalid(f"{path} exists already", hint="choose another folder, or move it away") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def read_private(path: Path, *, limit: int = 65536) -> bytes:
    """Read a secret file; raises `KeyFileInvalid` where it is missing or where others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            octets = file.read(limit + 1)
    except OSError as error:
        raise KeyFileInvalid(f"{path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise KeyFileInvalid(f"{path} may be read by others (mode {mode & 0o777:o})", hint=f"chmod 600 {path}")
    if len(octets) > limit:
        raise KeyFileInvalid(f"{path} has more than {limit} bytes")
    return octets


class PlainFile:
    """The root key in a file of its owner, for development: whoever copies the disk has it."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> bytes:
        """See `RootKeyProvider`."""
        key = os.urandom(32)
        write_private(self._path, (json.dumps({"strongroom": _FORMAT, "key": b64url(key)}) + "\n").encode())
        return key

    def unlock(self) -> bytes:
        """See `RootKeyProvider`."""
        try:
            read = Fields(parse_json(read_private(self._path), where=str(self._path)), where=str(self._path))
            if read.text("strongroom") != _FORMAT:
                raise KeyFileInvalid(f"{self._path} is not a root key")
            if read.has("wrapped"):
                raise KeyFileInvalid(f"{self._path} is protected by a passphrase", hint="give the passphrase")
            key = read.blob("key", size=32)
            read.done()
        except MalformedInput as error:
            raise KeyFileInvalid(str(error)) from error
        return key


class PassphraseFile:
    """The root key wrapped with AES-256-GCM under Argon2id of a passphrase."""

    name = "passphrase"

    def __init__(self, path: Path, passphrase: str) -> None:
        if not passphrase:
            raise KeyFileInvalid("an empty passphrase protects nothing")
        self._path = path
        self._passphrase = passphrase

    def create(self) -> bytes:
        """See `RootKeyProvider`."""
        key, salt, nonce = os.urandom(32), os.urandom(16), os.urandom(12)
        costs = (ARGON2_ITERATIONS, ARGON2_LANES, ARGON2_MEMORY_KIB)
        wrapped = AESGCM(self._stretch(salt, *costs)).encrypt(nonce, key, labelled(_FORMAT))
        fields = {
            "strongroom": _FORMAT,
            "kdf": "argon2id",
            "iterations": costs[0],
            "lanes": costs[1],
            "memory_kib": costs[2],
            "salt": b64url(salt),
            "nonce": b64url(nonce),
            "wrapped": b64url(wrapped),
        }
        write_private(self._path, (json.dumps(fields, indent=1) + "\n").encode())
        return key

    def unlock(self) -> bytes:
        """See `RootKeyProvider`."""
        try:
            read = Fields(parse_json(read_private(self._path), where=str(self._path)), where=str(self._path))
            if read.text("strongroom") != _FORMAT or read.text("kdf", default="none") != "argon2id":
                raise KeyFileInvalid(f"{self._path} is not a root key under a passphrase")
            # Upper limits keep a doctored file from eating the machine before its tag is checked.
            costs = (
                read.number("iterations", low=1, high=64),
                read.number("lanes", low=1, high=64),
                read.number("memory_kib", low=8192, high=1 << 21),
            )
            salt, nonce, wrapped = (
                read.blob("salt", size=16),
                read.blob("nonce", size=12),
                read.blob("wrapped", size=48),
            )
            read.done()
        except MalformedInput as error:
            raise KeyFileInvalid(str(error)) from error
        try:
            return AESGCM(self._stretch(salt, *costs)).decrypt(nonce, wrapped, labelled(_FORMAT))
        except InvalidTag as error:
            raise KeyFileInvalid(f"{self._path} does not open", hint="is it the right passphrase?") from error

    def _stretch(self, salt: bytes, iterations: int, lanes: int, memory_kib: int) -> bytes:
        argon2 = Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
        return argon2.derive(self._passphrase.encode("utf-8"))
