"""A fresh root key for a store, and a fresh token key, with the broker stopped (docs/release.md section 13)."""

from __future__ import annotations

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from strongroom.archive.keyfile import sync_folder
from strongroom.broker.directory import Settings, exchanged, occupied, open_log, open_store, provider


def rotate_root_key(directory: Path, *, passphrase: str | None = None) -> int:
    """Seal every value anew; how many there were. A crash at any instant leaves a store that opens.

    The fresh key lies beside the old one until the store is under it; `directory.open_store` finds out which
    of the two it is. Raises a `StrongroomError`.
    """
    settings = Settings.load(directory)
    with occupied(directory), exchanged(directory):
        store = open_store(directory, settings, passphrase)
        try:
            log = open_log(store, settings)
            fresh = provider(directory, settings, passphrase, file="root.key.new")
            (directory / "root.key.new").unlink(missing_ok=True)
            key = fresh.create()
            with store.transaction():
                count = store.reseal(key, _token_key())
                log.append({"at": int(time.time()), "event": "rotate", "values": count})
        finally:
            store.close()
        (directory / "root.key.new").replace(directory / "root.key")
        sync_folder(directory)
    return count


def _token_key() -> bytes:
    private = ec.generate_private_key(ec.SECP256R1())
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
