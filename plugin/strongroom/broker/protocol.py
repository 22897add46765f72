"""The messages of the key broker protocol, KBS 0.4.0 (docs/release.md sections 1 to 5 and 9).

Bytes become typed values here and nowhere else; the broker and the keeper's client share this
module, so that both hash the same two documents. Nothing here opens a socket, judges evidence
or encrypts: that is `http`, `release` and `jwe`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.encoding import Fields, b64url, canonical_json, parse_json
from strongroom.errors import MalformedInput, ProtocolMismatch
from strongroom.evidence.types import Evidence

VERSION = "0.4.0"
"""Exactly this version is spoken; there is no negotiation (docs/release.md section 1)."""

BASE_PATH = "/kbs/v0"
SESSION_COOKIE = "kbs-session-id"
SESSION_SECONDS = 300
BODY_LIMIT = 2_000_000
"""Bytes of one request body; a Trustee's default."""

HASH_ALGORITHMS = ("sha256", "sha384", "sha512", "sm3")
STOCK_TEES = frozenset(
    {"az-snp-vtpm", "az-tdx-vtpm", "nvidia", "sgx", "snp", "tdx", "cca", "csv", "se", "hygondcu", "tpm"}
    | {"sample", "sampledevice"}
)
OWN_TEES = frozenset({"simulated"})
"""TEE names that only strongroom brokers know (docs/release.md section 10)."""

ADDITION = "strongroom"
"""The member of extra-params, and of the device map, in which strongroom speaks to its own kind."""

_SEGMENT = re.compile(r"[A-Za-z0-9_-]+[A-Za-z0-9_.-]*")
_SEGMENT_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Resource:
    """The three-segment name of a resource, ``kbs:///<repository>/<type>/<tag>`` (section 9).

    For a model key: tenant, lineage, and ``<version>-<archive digest in hex>``.
    """

    repository: str
    type: str
    tag: str

    def __post_init__(self) -> None:
        for segment in self:
            if len(segment) > _SEGMENT_LIMIT or not _SEGMENT.fullmatch(segment):
                raise MalformedInput(
                    f"{segment[:40]!r} is not a segment of a resource name",
                    hint="letters, digits, '_', '-', and '.' after the first character, at most 128",
                )

    def __iter__(self) -> Any:
        return iter((self.repository, self.type, self.tag))

    @classmethod
    def parse(cls, path: str) -> Resource:
        """From ``repository/type/tag``; raises `MalformedInput`."""
        segments = path.removeprefix("kbs:///").split("/")
        if len(segments) != 3:
            raise MalformedInput(f"a resource name has three segments, found {len(segments)}")
        return cls(*segments)

    def __str__(self) -> str:
        return f"{self.repository}/{self.type}/{self.tag}"


@dataclass(frozen=True, slots=True)
class EcKey:
    """A TEE's P-256 or P-521 public key for ECDH-ES+A256KW; coordinates in base64url at full width."""

    crv: str
    x: bytes
    y: bytes

    WIDTHS = {"P-256": 32, "P-521": 66}
    ALGORITHM = "ECDH-ES+A256KW"

    def serialise(self) -> dict[str, str]:
        """Exactly the five members that a stock broker hashes."""
        return _with_blobs({"kty": "EC", "crv": self.crv, "alg": self.ALGORITHM}, x=self.x, y=self.y)


@dataclass(frozen=True, slots=True)
class RsaKey:
    """A TEE's RSA public key for RSA-OAEP-256; modulus and exponent as big-endian bytes."""

    n: bytes
    e: bytes

    ALGORITHM = "RSA-OAEP-256"

    def serialise(self) -> dict[str, str]:
        """Exactly the four members that a stock broker hashes."""
        return _with_blobs({"kty": "RSA", "alg": self.ALGORITHM}, n=self.n, e=self.e)


TeeKey = EcKey | RsaKey


def _with_blobs(members: dict[str, str], **blobs: bytes) -> dict[str, str]:
    return members | {name: b64url(octets) for name, octets in blobs.items()}


def parse_tee_key(value: object) -> TeeKey:
    """A `tee-pubkey` JWK with exactly the members of its type (section 4); raises `MalformedInput`.

    An extra member such as ``kid`` is refused: a stock broker drops it before hashing, so that
    the two sides would silently hash different documents.
    """
    read = Fields(value, where="tee-pubkey")
    kty = read.text("kty", limit=8)
    algorithm = read.text("alg", limit=32)
    key: TeeKey
    if kty == "EC" and algorithm == EcKey.ALGORITHM:
        crv = read.text("crv", limit=8)
        if crv not in EcKey.WIDTHS:
            raise MalformedInput(f"tee-pubkey: curve {crv!r} is neither P-256 nor P-521")
        width = EcKey.WIDTHS[crv]
        key = EcKey(crv, read.blob("x", size=width), read.blob("y", size=width))
    elif kty == "RSA" and algorithm == RsaKey.ALGORITHM:
        key = RsaKey(read.blob("n", limit=1024), read.blob("e", limit=8))
    else:
        raise MalformedInput(f"tee-pubkey: kty {kty!r} with alg {algorithm!r} is not supported")
    read.done()
    return key


@dataclass(frozen=True, slots=True)
class Request:
    """The body of ``POST auth`` (section 2)."""

    tee: str
    extra_params: Any = ""
    version: str = VERSION

    @classmethod
    def parse(cls, octets: bytes) -> Request:
        """From JSON; raises `ProtocolMismatch` for another version, else `MalformedInput`."""
        read = Fields(parse_json(octets, where="Request", limit=BODY_LIMIT), where="Request")
        version = read.text("version", limit=64)
        if version != VERSION:
            # Before anything else is looked at: another version may have other members.
            raise ProtocolMismatch(
                f"KBS Client Protocol Version Mismatch: expect ={VERSION} while the request is {version}",
                hint="use a client and a broker of the same protocol version",
            )
        request = cls(tee=read.text("tee", limit=64), extra_params=read.value("extra-params"))
        read.done()
        return request

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`, before JSON."""
        return {"version": self.version, "tee": self.tee, "extra-params": self.extra_params}


@dataclass(frozen=True, slots=True)
class Challenge:
    """The answer to ``POST auth``. The nonce is an opaque string: hashed as it came, never decoded."""

    nonce: str
    extra_params: Any = ""

    @classmethod
    def parse(cls, octets: bytes) -> Challenge:
        """From JSON; unknown members are left alone, for a broker may add some. Raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="Challenge"), where="Challenge")
        nonce = read.text("nonce", limit=65536)
        if not nonce:
            raise MalformedInput("Challenge: the nonce is empty")
        return cls(nonce=nonce, extra_params=read.value("extra-params") if read.has("extra-params") else None)

    def serialise(self) -> dict[str, Any]:
        """The inverse of `parse`, before JSON."""
        return {"nonce": self.nonce, "extra-params": self.extra_params}

    def hash_name(self) -> str:
        """The hash that the broker selected: SHA-384 unless it says otherwise (section 2)."""
        selected: object = "sha384"
        if isinstance(self.extra_params, Mapping):
            selected = self.extra_params.get("selected-hash-algorithm", "sha384")
        if not isinstance(selected, str) or selected.lower() not in ("sha256", "sha384", "sha512"):
            raise MalformedInput(f"Challenge: selected-hash-algorithm {selected!r} is not known")
        return selected.lower()

    def addition(self) -> Mapping[str, Any] | None:
        """What a strongroom broker adds to its challenge, or None at any other broker."""
        if isinstance(self.extra_params, Mapping) and isinstance(self.extra_params.get(ADDITION), Mapping):
            own: Mapping[str, Any] = self.extra_params[ADDITION]
            return own
        return None


@dataclass(frozen=True, slots=True)
class Attestation:
    """The body of ``POST attest`` (section 4).

    `additional` is the *text* sent as ``additional_evidence``: it is hashed as it stands, so it is
    kept as it came and parsed only by `devices`.
    """

    nonce: str
    tee_key: TeeKey
    primary: Any
    additional: str = ""
    init_data: str | None = None

    @classmethod
    def parse(cls, octets: bytes) -> Attestation:
        """From JSON; raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="Attestation", limit=BODY_LIMIT), where="Attestation")
        init_data = None
        if read.has("init-data") and (given := read.value("init-data")) is not None:
            inner = Fields(given, where="Attestation: init-data")
            if inner.text("format", limit=16) != "toml":
                raise MalformedInput("Attestation: init-data: only the format toml is accepted")
            init_data = inner.text("body", limit=BODY_LIMIT)
            inner.done()
        runtime = read.table("runtime-data")
        tee_evidence = read.table("tee-evidence")
        attestation = cls(
            nonce=runtime.text("nonce", limit=65536),
            tee_key=parse_tee_key(runtime.value("tee-pubkey")),
            primary=tee_evidence.value("primary_evidence"),
            additional=tee_evidence.text("additional_evidence", limit=BODY_LIMIT),
            init_data=init_data,
        )
        for each in (runtime, tee_evidence, read):
            each.done()
        for text in (attestation.nonce, attestation.additional, attestation.init_data or ""):
            # JSON can spell half of a surrogate pair; no document can be hashed over it.
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise MalformedInput("Attestation: a text holds a lone surrogate")
        return attestation

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`, before JSON."""
        body: dict[str, Any] = {
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": self.tee_key.serialise()},
            "tee-evidence": {"primary_evidence": self.primary, "additional_evidence": self.additional},
        }
        if self.init_data is not None:
            body["init-data"] = {"format": "toml", "body": self.init_data}
        return body

    def devices(self) -> tuple[Evidence, ...]:
        """The device map, one `Evidence` per TEE name; raises `MalformedInput`."""
        if self.additional == "":
            return ()
        devices = parse_json(self.additional, where="additional_evidence", limit=BODY_LIMIT)
        if not isinstance(devices, dict) or len(devices) > 16:
            raise MalformedInput("additional_evidence: not an object of at most 16 TEE names")
        return tuple(Evidence(tee=name, body=body) for name, body in devices.items())


def device_document(nonce: str, tee_key: TeeKey) -> bytes:
    """What every device attester's digest is over (section 3), in JCS."""
    return canonical_json({"nonce": nonce, "tee-pubkey": tee_key.serialise()})


def primary_document(nonce: str, tee_key: TeeKey, additional: str) -> bytes:
    """What the CPU attester's digest is over (section 3), in JCS: it commits to the devices' evidence."""
    return canonical_json({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": tee_key.serialise()})


def document_digest(document: bytes, hash_name: str = "sha384") -> bytes:
    """The digest that goes into evidence: 48 bytes for SHA-384, which every TEE but `se` uses."""
    return hashlib.new(hash_name, document).digest()


ERROR_URL = "https://github.com/confidential-containers/kbs/errors/"


@dataclass(frozen=True, slots=True)
class ErrorInformation:
    """The body of every refusal (section 6); `detail` is all that a peer learns."""

    name: str
    detail: str = field(default="")

    @classmethod
    def parse(cls, octets: bytes) -> ErrorInformation:
        """From JSON without regard to a content type; raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="ErrorInformation", limit=65536), where="ErrorInformation")
        kind = read.text("type", limit=256)
        if not kind.startswith(ERROR_URL):
            raise MalformedInput("ErrorInformation: its type is no error of this protocol")
        return cls(kind.removeprefix(ERROR_URL), read.text("detail", limit=4096, default=""))

    def serialise(self) -> dict[str, str]:
        """The exact inverse of `parse`, before JSON."""
        return {"type": ERROR_URL + self.name, "detail": self.detail}

    @property
    def status(self) -> int:
        """404 for the two errors of a path, 401 for everything else (section 6)."""
        return 404 if self.name in ("InvalidRequestPath", "PluginNotFound") else 401
