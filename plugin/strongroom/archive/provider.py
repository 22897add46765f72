"""Recipients and signers that plugins bring, fitted to what `seal`, `rewrap` and `unseal` ask for.

A plugin handles one secret and knows nothing of archives; what its slot or signature is bound to is decided
here (docs/format.md sections 5.2 and 10.1). The hooks themselves are listed in `strongroom.hookspecs`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from strongroom.archive.recipients import PROVIDER, SLOT_LABEL, provider_slot, recipient_id, split_provider
from strongroom.archive.signature import AuthorPublic, SignatureKind, signed_octets
from strongroom.archive.slots import Slot
from strongroom.encoding import labelled
from strongroom.errors import ArchiveTampered, KeyFileInvalid, NoRecipient
from strongroom.keys import ArchiveDigest, ModelKey


class Wrapper(Protocol):
    """What a plugin's recipient does: the hook's `Recipient`."""

    def wrap(self, model_key: ModelKey, context: bytes) -> bytes:
        """The key, sealed and bound to `context`."""

    def unwrap(self, wrapped: bytes, context: bytes) -> ModelKey:
        """The inverse; raises `NoRecipient` where it is not this recipient's."""


class RawSigner(Protocol):
    """What a plugin's signer does: the hook's `Signer`."""

    def public_keys(self) -> bytes:
        """All component public keys."""

    def sign(self, message: bytes) -> bytes:
        """All component signatures over `message`."""


def provider_context(digest: ArchiveDigest, scheme: str) -> bytes:
    """What a provider binds its slot to: the archive and its own name."""
    return labelled(SLOT_LABEL, PROVIDER.to_bytes(2, "big"), digest, scheme.encode("ascii"))


class ProviderRecipient:
    """A plugin's recipient as recipient and as identity."""

    def __init__(self, scheme: str, wrapper: Wrapper) -> None:
        self._scheme, self._wrapper = scheme, wrapper

    def __call__(self, key: ModelKey, digest: ArchiveDigest) -> Slot:
        """Wrap `key`; raises `SealRefused` where the slot does not fit."""
        wrapped = self._wrapper.wrap(key, provider_context(digest, self._scheme))
        # The provider's public identity, if it has one, is its own affair; the id only has to be unique.
        name = recipient_id(PROVIDER, digest, self._scheme.encode() + hashlib.sha256(wrapped).digest())
        return provider_slot(self._scheme, name, wrapped)

    def unwrap(self, slots: Iterable[Slot], digest: ArchiveDigest) -> ModelKey | None:
        """The key from the first slot of this scheme that is this recipient's, or None."""
        for slot in slots:
            if slot.kind != PROVIDER:
                continue
            scheme, wrapped = split_provider(slot.body)
            if scheme == self._scheme:
                try:
                    return self._wrapper.unwrap(wrapped, provider_context(digest, scheme))
                except NoRecipient:
                    continue
        return None


class ProviderSigner:
    """A plugin's signer as an author. What it signed is verified before anything is published."""

    def __init__(self, signer: RawSigner) -> None:
        self._signer = signer
        keys = bytes(signer.public_keys())
        kinds = {kind.public_size: kind for kind in SignatureKind}
        if len(keys) not in kinds:
            raise KeyFileInvalid(f"the signer has {len(keys)} bytes of public keys; no kind of signature has that")
        self.public = AuthorPublic(kinds[len(keys)], keys)

    def sign(self, core: bytes) -> bytes:
        """All component signatures over a core; raises `ArchiveTampered` for one that does not hold."""
        signature = bytes(self._signer.sign(signed_octets(self.public.kind, core)))
        try:
            self.public.verify(core, signature)
        except ArchiveTampered as error:
            raise KeyFileInvalid("what the signer signed does not verify under its own public keys") from error
        return signature
