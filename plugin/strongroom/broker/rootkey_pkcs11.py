"""A root key wrapped by an AES key that never leaves a PKCS #11 token (docs/release.md section 13).

The file holds the root key under AES-256-GCM of a key inside the token, which `create` makes there: sensitive
and not extractable. The PIN comes with the passphrase file. Needs the extra ``[pkcs11]`` and the token
maker's library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strongroom.broker.rootkey import read_private, write_private
from strongroom.encoding import Fields, b64url, labelled, parse_json
from strongroom.errors import KeyFileInvalid, MalformedInput

_FORMAT = "root-key/1"


class Pkcs11Wrapped:
    """Wraps 32 bytes with the AES key `key_label` of the token `token_label`; `module` is the library's path."""

    name = "pkcs11"

    def __init__(
        self, path: Path, *, module: str, token_label: str, pin: str | None, key_label: str = "strongroom root key"
    ) -> None:
        if not pin:
            raise KeyFileInvalid("the token's PIN is missing", hint="--passphrase-file FILE, its first line is the PIN")
        self._path, self._module = path, module
        self._token, self._key, self._pin = token_label, key_label, pin

    def create(self) -> bytes:
        """See `RootKeyProvider`."""
        key = os.urandom(32)
        self.keep(key)
        return key

    def keep(self, key: bytes) -> None:
        """Wrap 32 bytes with a fresh key of the token; never over an existing file."""
        from pkcs11 import Attribute, KeyType

        nonce = os.urandom(12)
        with self._session(writes=True) as session:
            wrapping = session.generate_key(
                KeyType.AES,
                256,
                label=self._key,
                store=True,
                template={
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: False,
                    Attribute.ENCRYPT: True,
                    Attribute.DECRYPT: True,
                    Attribute.WRAP: False,
                    Attribute.UNWRAP: False,
                    Attribute.ID: nonce,
                },
            )
            wrapped = wrapping.encrypt(key, **_gcm(nonce))
        fields = {
            "strongroom": _FORMAT,
            "pkcs11_key": b64url(nonce),
            "nonce": b64url(nonce),
            "wrapped_in_token": b64url(wrapped),
        }
        write_private(self._path, (json.dumps(fields, indent=1) + "\n").encode())

    def unlock(self) -> bytes:
        """See `RootKeyProvider`."""
        try:
            read = Fields(parse_json(read_private(self._path), where=str(self._path)), where=str(self._path))
            if read.text("strongroom") != _FORMAT or not read.has("wrapped_in_token"):
                raise KeyFileInvalid(f"{self._path} is not a root key of a PKCS #11 token")
            key_id, nonce = read.blob("pkcs11_key", limit=64), read.blob("nonce", size=12)
            wrapped = read.blob("wrapped_in_token", size=48)
            read.done()
        except MalformedInput as error:
            raise KeyFileInvalid(str(error)) from error
        from pkcs11 import ObjectClass

        with self._session(writes=False) as session:
            wrapping = session.get_key(object_class=ObjectClass.SECRET_KEY, label=self._key, id=key_id)
            key: bytes = wrapping.decrypt(wrapped, **_gcm(nonce))
        return key

    @contextmanager
    def _session(self, *, writes: bool) -> Iterator[Any]:
        try:
            import pkcs11
            from pkcs11.exceptions import PKCS11Error
        except ImportError as error:
            raise KeyFileInvalid("python-pkcs11 is not installed", hint="pip install 'strongroom[pkcs11]'") from error
        try:
            token = pkcs11.lib(self._module).get_token(token_label=self._token)
            with token.open(rw=writes, user_pin=self._pin) as session:
                yield session
        except (PKCS11Error, OSError, RuntimeError) as error:
            raise KeyFileInvalid(
                f"the token {self._token!r} did not do it: {type(error).__name__}",
                hint="is the token there, the PIN right, and its key still in it?",
            ) from error


def _gcm(nonce: bytes) -> dict[str, Any]:
    from pkcs11 import GCMParams, Mechanism

    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, labelled(_FORMAT), 128)}
