"""The key bundle: how a client learns the request keys, and what evidence binds (docs/protocol.md section 4).

`KeyBundle` is the JSON document; `binding` is the hash that the server puts into its evidence and
that the client recomputes from what it received. What the evidence itself means is not known here:
it is a TEE name and a JSON object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.encoding import Fields, b64url, canonical_json, labelled, parse_json
from strongroom.errors import MalformedInput
from strongroom.keys import ArchiveDigest, AuthorId

KEYS_REQUEST_TYPE = "application/vnd.strongroom.keys-request+json"
BUNDLE_TYPE = "application/vnd.strongroom.key-bundle+json"
NONCE_SIZE = 32
BUNDLE_LIMIT = 4 * 1024 * 1024
BINDING_LABEL = "strongroom channel v1"
MODES = ("host", "fleet")
"""Whose the request keys are: one TEE's alone, or those of all keepers of an archive (section 7)."""


@dataclass(frozen=True, slots=True)
class KeysRequest:
    """What a client posts to get a bundle: a nonce of 32 bytes, or none."""

    nonce: bytes | None = None

    @classmethod
    def parse(cls, octets: bytes) -> KeysRequest:
        """From ``{}`` or ``{"nonce": base64url}``; raises `MalformedInput`."""
        fields = Fields(parse_json(octets, where="keys request", limit=4096), where="keys request")
        nonce = fields.blob("nonce", size=NONCE_SIZE) if fields.has("nonce") else None
        fields.done()
        return cls(nonce)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`, in canonical JSON."""
        return canonical_json({} if self.nonce is None else {"nonce": b64url(self.nonce)})


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model a bundle was asked for: its name and version in the server, its archive's digest."""

    name: str
    version: str
    archive: ArchiveDigest

    @classmethod
    def parse(cls, fields: Fields) -> ServedModel:
        """Raises `MalformedInput`."""
        model = cls(
            fields.text("name", limit=256),
            fields.text("version", limit=64),
            ArchiveDigest(fields.hexes("archive", size=32)),
        )
        fields.done()
        return model

    def serialise(self) -> dict[str, str]:
        """The exact inverse of `parse`."""
        return {"name": self.name, "version": self.version, "archive": str(self.archive)}


@dataclass(frozen=True, slots=True, order=True)
class AdmittedArchive:
    """One archive that was admitted into this TEE: they share one trust domain, so a client sees them all.

    `name` and `version` are the signed core's, not the model server's.
    """

    archive: ArchiveDigest
    author: AuthorId
    name: str
    version: int

    @classmethod
    def parse(cls, fields: Fields) -> AdmittedArchive:
        """Raises `MalformedInput`."""
        admitted = cls(
            ArchiveDigest(fields.hexes("archive", size=32)),
            AuthorId(fields.hexes("author", size=32)),
            fields.text("name", limit=256),
            fields.number("version"),
        )
        fields.done()
        return admitted

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        return {"archive": str(self.archive), "author": str(self.author), "name": self.name, "version": self.version}


@dataclass(frozen=True, slots=True)
class BundleEvidence:
    """Evidence as it travels: the TEE's name and the attester's JSON object, opaque to this room."""

    tee: str
    body: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, fields: Fields) -> BundleEvidence:
        """Raises `MalformedInput`."""
        tee, body = fields.text("tee", limit=64), fields.value("body")
        fields.done()
        if not isinstance(body, dict):
            raise MalformedInput("key bundle: evidence: body is not an object")
        return cls(tee, body)

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        return {"tee": self.tee, "body": dict(self.body)}


@dataclass(frozen=True, slots=True)
class BundleParts:
    """Everything in a bundle but the evidence: what the evidence speaks about.

    `ohttp_keys` are the exact `application/ohttp-keys` bytes; `not_before` and `not_after` seconds
    since the epoch; `configuration` and `plugins` SHA-256 digests; `nonce` 32 bytes if one was asked.
    `admitted` is sorted by archive digest. `mode` is one of `MODES`.
    """

    ohttp_keys: bytes
    not_before: int
    not_after: int
    model: ServedModel
    admitted: tuple[AdmittedArchive, ...]
    configuration: bytes
    plugins: bytes
    mode: str
    nonce: bytes | None = None

    def __post_init__(self) -> None:
        """Raises `MalformedInput` for sizes and an order that `KeyBundle.parse` would refuse."""
        if len(self.configuration) != 32 or len(self.plugins) != 32:
            raise MalformedInput("key bundle: the configuration and plugin digests have 32 bytes each")
        if self.mode not in MODES:
            raise MalformedInput(f"key bundle: mode is {self.mode!r}, known are {' and '.join(MODES)}")
        if self.nonce is not None and len(self.nonce) != NONCE_SIZE:
            raise MalformedInput(f"key bundle: a nonce of {len(self.nonce)} bytes, {NONCE_SIZE} expected")
        if self.not_before > self.not_after:
            raise MalformedInput("key bundle: it ends before it begins")
        if list(self.admitted) != sorted(set(self.admitted)):
            raise MalformedInput("key bundle: the admitted archives are not sorted, or one stands twice")

    def _rest(self) -> dict[str, Any]:
        """All members but the evidence, the keys and the nonce."""
        return {
            "not_before": self.not_before,
            "not_after": self.not_after,
            "model": self.model.serialise(),
            "admitted": [each.serialise() for each in self.admitted],
            "configuration": self.configuration.hex(),
            "plugins": self.plugins.hex(),
            "mode": self.mode,
        }

    def binding(self) -> bytes:
        """SHA-512 (64 bytes) over nonce, keys and the canonical JSON of the rest (docs/protocol.md section 4.2).

        TEEs with a field of 32 bytes carry its first 32. An absent nonce counts as no bytes, which no
        present one can be.
        """
        parts = labelled(BINDING_LABEL, self.nonce or b"", self.ohttp_keys, canonical_json(self._rest()))
        return hashlib.sha512(parts).digest()

    def serialise(self) -> dict[str, Any]:
        """The members of the JSON document."""
        members = {"ohttp_keys": b64url(self.ohttp_keys), **self._rest()}
        return members if self.nonce is None else {"nonce": b64url(self.nonce), **members}


@dataclass(frozen=True, slots=True)
class KeyBundle:
    """What the server answers: the parts, and evidence over their binding."""

    parts: BundleParts
    evidence: BundleEvidence

    @classmethod
    def parse(cls, octets: bytes) -> KeyBundle:
        """From JSON of at most 4 MiB; raises `MalformedInput`. Says nothing about truth: that is `client.verify`."""
        fields = Fields(parse_json(octets, where="key bundle", limit=BUNDLE_LIMIT), where="key bundle")
        admitted = fields.value("admitted")
        if not isinstance(admitted, list) or len(admitted) > 1024:
            raise MalformedInput("key bundle: admitted is not a list of at most 1024 archives")
        parts = BundleParts(
            ohttp_keys=fields.blob("ohttp_keys", limit=64 * 1024),
            not_before=fields.number("not_before"),
            not_after=fields.number("not_after"),
            model=ServedModel.parse(fields.table("model")),
            admitted=tuple(
                AdmittedArchive.parse(Fields(each, where=f"key bundle: admitted {place}"))
                for place, each in enumerate(admitted)
            ),
            configuration=fields.hexes("configuration", size=32),
            plugins=fields.hexes("plugins", size=32),
            mode=fields.text("mode", limit=16),
            nonce=fields.blob("nonce", size=NONCE_SIZE) if fields.has("nonce") else None,
        )
        bundle = cls(parts, BundleEvidence.parse(fields.table("evidence")))
        fields.done()
        return bundle

    def serialise(self) -> bytes:
        """Canonical JSON; the inverse of `parse`."""
        return canonical_json({**self.parts.serialise(), "evidence": self.evidence.serialise()})
