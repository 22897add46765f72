"""What all keepers of one archive compute alike in mode ``fleet`` (docs/protocol.md section 7.2).

Pure derivations: who may have the seed, when an epoch begins and how long its keys open is the keeper's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.channel.kem import KEMS, P256, KemPrivateKey, expand, extract
from strongroom.errors import MalformedInput
from strongroom.keys import ArchiveDigest, ModelKey

_MODEL_LABEL = b"strongroom fleet v1 model secret"
_KEY_LABEL = b"strongroom ohttp"


def model_secret(key: ModelKey, archive: ArchiveDigest) -> bytes:
    """The model key's share in the request keys of its fleet, 32 bytes. Nothing of the archive is under it."""
    return expand("sha256", extract("sha256", bytes(archive), key.reveal()), _MODEL_LABEL, 32)


def epoch_keys(epoch: int, seed: bytes, secret: bytes, kems: Sequence[int]) -> list[KemPrivateKey]:
    """The private keys of one epoch, one for each KEM; `seed` and the model's `secret` have 32 bytes each.

    Raises `MalformedInput` for other sizes.
    """
    if len(seed) != 32 or len(secret) != 32:
        raise MalformedInput("an epoch seed and a model secret have 32 bytes each")
    prk = extract("sha256", seed, secret)
    keys = []
    for kem_id in kems:
        octets = expand("sha256", prk, _KEY_LABEL + epoch.to_bytes(8, "big") + kem_id.to_bytes(2, "big"), 32)
        keys.append(KEMS[kem_id].derive(octets) if kem_id == P256 else KEMS[kem_id].private_key(octets))
    return keys
