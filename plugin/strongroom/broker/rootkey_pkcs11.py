"""A root key wrapped by an AES key that never leaves a PKCS #11 token (docs/release.md section 13).

The file holds the root key under AES-256-GCM of a key inside the token, which `create` makes there. The PIN comes
with the passphrase file. The token itself is `pkcs11`'s business.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from strongroom.broker.pkcs11 import Pkcs11Token, WrappedSecret
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
        self._path, self._label = path, key_label
        self._token = Pkcs11Token(module, token_label, pin)

    def create(self) -> bytes:
        """See `RootKeyProvider`."""
        key = os.urandom(32)
        wrapped = self._token.wrap(key, label=self._label, context=labelled(_FORMAT))
        fields = {
            "strongroom": _FORMAT,
            "pkcs11_key": b64url(wrapped.key),
            "nonce": b64url(wrapped.nonce),
            "wrapped_in_token": b64url(wrapped.octets),
        }
        write_private(self._path, (json.dumps(fields, indent=1) + "\n").encode())
        return key

    def unlock(self) -> bytes:
        """See `RootKeyProvider`."""
        try:
            read = Fields(parse_json(read_private(self._path), where=str(self._path)), where=str(self._path))
            if read.text("strongroom") != _FORMAT or not read.has("wrapped_in_token"):
                raise KeyFileInvalid(f"{self._path} is not a root key of a PKCS #11 token")
            key, nonce = read.blob("pkcs11_key", limit=64), read.blob("nonce", size=12)
            wrapped = WrappedSecret(key, nonce, read.blob("wrapped_in_token", size=48))
            read.done()
        except MalformedInput as error:
            raise KeyFileInvalid(str(error)) from error
        return self._token.unwrap(wrapped, label=self._label, context=labelled(_FORMAT))
