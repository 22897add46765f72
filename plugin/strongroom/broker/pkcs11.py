"""A PKCS #11 token that wraps small secrets, each with an AES key that is made in it and never leaves it.

What is wrapped and where it is kept is the caller's business: a broker's root key (`rootkey_pkcs11`), a keeper's
model keys (`keeper.providers`). Needs the extra ``[pkcs11]`` and the token maker's library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.errors import KeyFileInvalid

# To log in is a state of the whole process (PKCS #11 section 5.6): two sessions at once would end each other's.
_ONE_AT_A_TIME = threading.Lock()

_NOT_INSTALLED = "pip install 'strongroom[pkcs11]'"


@dataclass(frozen=True, slots=True)
class WrappedSecret:
    """A secret under AES-256-GCM of a token's key: the key's id there, 12 bytes of nonce, ciphertext and tag."""

    key: bytes
    nonce: bytes
    octets: bytes


@dataclass(frozen=True, slots=True)
class Pkcs11Token:
    """The token labelled `token`, reached through the library `module`. The PIN is shown nowhere."""

    module: str
    token: str
    pin: str

    def __repr__(self) -> str:
        return f"Pkcs11Token({self.module!r}, {self.token!r})"

    def wrap(self, secret: bytes, *, label: str, context: bytes) -> WrappedSecret:
        """Wrap with a fresh key of the token, bound to `context`. Raises `KeyFileInvalid`."""
        nonce = os.urandom(12)
        with self._session(writes=True) as session:
            from pkcs11 import Attribute, KeyType

            key = session.generate_key(
                KeyType.AES,
                256,
                label=label,
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
            return WrappedSecret(nonce, nonce, key.encrypt(secret, **_gcm(nonce, context)))

    def unwrap(self, wrapped: WrappedSecret, *, label: str, context: bytes) -> bytes:
        """The secret; raises `KeyFileInvalid` for another token, PIN, key, context or a changed ciphertext."""
        with self._session(writes=False) as session:
            from pkcs11 import ObjectClass

            key = session.get_key(object_class=ObjectClass.SECRET_KEY, label=label, id=wrapped.key)
            secret: bytes = key.decrypt(wrapped.octets, **_gcm(wrapped.nonce, context))
        return secret

    def missing(self) -> str:
        """What is not there to use this token, in one sentence; empty where nothing is missing. Uses no PIN."""
        try:
            import pkcs11
            from pkcs11.exceptions import PKCS11Error
        except ImportError:
            return f"python-pkcs11 is not installed: {_NOT_INSTALLED}"
        if not Path(self.module).is_file():
            return f"there is no library at {self.module}"
        try:
            with _ONE_AT_A_TIME:
                pkcs11.lib(self.module).get_token(token_label=self.token)
        except (PKCS11Error, OSError, RuntimeError) as error:
            return f"its library shows no token {self.token!r}: {type(error).__name__}"
        return ""

    @contextmanager
    def _session(self, *, writes: bool) -> Iterator[Any]:
        try:
            import pkcs11
            from pkcs11.exceptions import PKCS11Error
        except ImportError as error:
            raise KeyFileInvalid("python-pkcs11 is not installed", hint=_NOT_INSTALLED) from error
        try:
            with _ONE_AT_A_TIME:
                token = pkcs11.lib(self.module).get_token(token_label=self.token)
                with token.open(rw=writes, user_pin=self.pin) as session:
                    yield session
        except (PKCS11Error, OSError, RuntimeError) as error:
            raise KeyFileInvalid(
                f"the token {self.token!r} did not do it: {type(error).__name__}",
                hint="is the token there, the PIN right, and its key still in it?",
            ) from error


def _gcm(nonce: bytes, context: bytes) -> dict[str, Any]:
    from pkcs11 import GCMParams, Mechanism

    return {"mechanism": Mechanism.AES_GCM, "mechanism_param": GCMParams(nonce, context, 128)}
