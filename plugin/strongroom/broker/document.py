"""The resource that is released: a model key with its archive beside it (docs/release.md section 10).

The key owner stores it with the first seven members; a strongroom broker adds the rest at each release. A
stock Trustee hands out what was stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from strongroom.archive.header import check_owner
from strongroom.broker.protocol import Resource
from strongroom.encoding import Fields, b64url, canonical_json, parse_json
from strongroom.errors import ArchiveMalformed, MalformedInput
from strongroom.keys import ArchiveDigest, AuthorId, ModelKey

FORMAT = "model-key/1"
DOCUMENT_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class ModelKeyDocument:
    """One model key, as canonical JSON. Times in seconds; `broker_time` is Unix time.

    `lease_s` says for how long after `broker_time` a keeper may hold the key; None means without end.
    `lease` names the lease in the broker's list. `owner` is the owner or policy id of the signed header
    (docs/format.md section 5.1), for release policies.
    """

    archive: ArchiveDigest
    key: ModelKey = field(repr=False)
    version: int | None = None
    author: AuthorId | None = None
    owner: str | None = None
    lease_s: int | None = None
    lease: str | None = None
    broker_time: int | None = None

    @classmethod
    def parse(cls, octets: bytes) -> ModelKeyDocument:
        """Strictly; raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="model key", limit=DOCUMENT_LIMIT), where="model key")
        if read.text("strongroom", limit=64) != FORMAT:
            raise MalformedInput(f"model key: its format is not {FORMAT}")
        document = cls(
            archive=ArchiveDigest(read.hexes("archive", size=32)),
            key=ModelKey(read.blob("key", size=32)),
            version=read.number("version", high=2**32 - 1) if read.has("version") else None,
            author=AuthorId(read.hexes("author", size=32)) if read.has("author") else None,
            owner=_owner(read) if read.has("owner") else None,
            lease_s=read.number("lease_s", low=1, high=366 * 86400) if read.has("lease_s") else None,
            lease=read.text("lease", limit=64) if read.has("lease") else None,
            broker_time=read.number("broker_time") if read.has("broker_time") else None,
        )
        read.done()
        return document

    def serialise(self) -> bytes:
        """The exact inverse of `parse`. The result holds the key: it is for encryption, not for a log."""
        members: dict[str, object] = {
            "strongroom": FORMAT,
            "archive": str(self.archive),
            "key": b64url(self.key.reveal()),
        }
        optional = {
            "version": self.version,
            "author": None if self.author is None else str(self.author),
            "owner": self.owner,
            "lease_s": self.lease_s,
            "lease": self.lease,
            "broker_time": self.broker_time,
        }
        return canonical_json(members | {name: value for name, value in optional.items() if value is not None})

    def released(self, *, lease: str, lease_s: int | None, broker_time: int) -> ModelKeyDocument:
        """The document as it leaves this broker."""
        return replace(self, lease=lease, lease_s=lease_s, broker_time=broker_time)


def _owner(read: Fields) -> str:
    """As the signed header has it; raises `MalformedInput`."""
    try:
        return check_owner(read.text("owner", limit=256).encode())
    except (ArchiveMalformed, UnicodeEncodeError) as error:
        raise MalformedInput("model key: owner is empty, too long, or no plain text") from error


def is_model_key(octets: bytes) -> bool:
    """Whether stored bytes claim to be a model key, as a reader of JSON sees it; anything else is released as it is."""
    try:
        found = json.loads(octets)
    except (ValueError, RecursionError):
        return octets.lstrip().startswith(b"{") and b'"strongroom"' in octets  # a broken one is told so
    return isinstance(found, dict) and "strongroom" in found


def check_name(name: Resource, document: ModelKeyDocument) -> None:
    """Raise `MalformedInput` unless the tag is ``<version>-<archive digest>`` of this very document."""
    version, _, digest = name.tag.partition("-")
    if digest != str(document.archive) or (document.version is not None and version != str(document.version)):
        raise MalformedInput(
            f"{name} does not name the archive {document.archive} of version {document.version}",
            hint="a model key's tag is <version>-<archive digest in hex>",
        )


def model_key_name(tenant: str, lineage: str, version: int, archive: ArchiveDigest) -> Resource:
    """``kbs:///<tenant>/<lineage>/<version>-<archive digest>``."""
    return Resource(tenant, lineage, f"{version}-{archive}")
