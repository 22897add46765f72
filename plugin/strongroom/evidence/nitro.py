"""Verify an AWS Nitro Enclaves attestation document.

docs/attestation/nitro.md is the page for people. Evidence body (tee ``aws-nitro``):
``{"document": base64 of the COSE_Sign1}``. Endorsements: ``crl`` and ``crl:<anything>``
(DER or PEM), where revocation is to be judged. The root is AWS's G1 unless the maker hands in others
(tests do). The field that binds is ``user_data``: our attester puts the report data there.

Source: AWS Nitro Enclaves user guide, "Verifying the root of trust" and the NSM API document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.x509 import Certificate

from strongroom.encoding import Fields, small_number, unhex
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.certificates import parse_certificate, verify_chain
from strongroom.evidence.cose import Sign1, decode_cbor
from strongroom.evidence.door import at_the_door, base64_field
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.roots import root
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Word

TEE = "aws-nitro"
SOURCE = "AWS NSM API, attestation process"
LARGEST_DOCUMENT = 16 << 10
_PCR_SIZE = 48
_OPTIONAL = {"public_key": 1024, "user_data": 512, "nonce": 512}
_MEMBERS = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", *_OPTIONAL}


@dataclass(frozen=True, slots=True)
class AttestationDocument:
    """The signed payload. PCRs have 48 bytes (SHA-384); absent optional fields are empty."""

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes
    user_data: bytes
    nonce: bytes

    @classmethod
    def parse(cls, octets: bytes) -> AttestationDocument:
        """From the payload's CBOR, with the sizes of the NSM API; raises `EvidenceMalformed`."""
        document = decode_cbor(octets, what="Nitro document")
        if not isinstance(document, dict) or set(document) - _MEMBERS or not set(document) >= _MEMBERS - set(_OPTIONAL):
            raise EvidenceMalformed("Nitro document: not the map of the NSM API")
        if document["digest"] != "SHA384":
            raise EvidenceMalformed(f"Nitro document: digest {document['digest']!r}, SHA384 is expected")
        module_id, timestamp = document["module_id"], document["timestamp"]
        if not isinstance(module_id, str) or not 0 < len(module_id) <= 256:
            raise EvidenceMalformed("Nitro document: module_id")
        if type(timestamp) is not int or not 0 < timestamp < 1 << 46:
            raise EvidenceMalformed("Nitro document: timestamp")
        bundle = document["cabundle"]
        if not isinstance(bundle, list) or not 1 <= len(bundle) <= 6:
            raise EvidenceMalformed("Nitro document: cabundle")
        for certificate in (document["certificate"], *bundle):
            if not isinstance(certificate, bytes) or not 0 < len(certificate) <= 1024:
                raise EvidenceMalformed("Nitro document: a certificate of more than 1024 bytes, or none")
        return cls(
            module_id=module_id,
            timestamp=datetime.fromtimestamp(timestamp / 1000, UTC),
            pcrs=_pcrs(document["pcrs"]),
            certificate=document["certificate"],
            cabundle=tuple(bundle),
            **{name: _optional(document, name, limit) for name, limit in _OPTIONAL.items()},
        )


def _pcrs(value: object) -> dict[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= 32:
        raise EvidenceMalformed("Nitro document: pcrs")
    for index, digest in value.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 32:
            raise EvidenceMalformed("Nitro document: a PCR index outside 0..31")
        if not isinstance(digest, bytes) or len(digest) != _PCR_SIZE:
            raise EvidenceMalformed(f"Nitro document: PCR{index} has not 48 bytes")
    return dict(value)


def _optional(document: Mapping[str, Any], name: str, limit: int) -> bytes:
    value = document.get(name)
    if value is None:
        return b""
    if not isinstance(value, bytes) or len(value) > limit:
        raise EvidenceMalformed(f"Nitro document: {name} is not at most {limit} bytes")
    return value


@dataclass(frozen=True, slots=True)
class NitroPolicy:
    """The ``[aws-nitro]`` table. `pcrs` maps an index to the values allowed for it."""

    allow_debug: bool = False
    pcrs: Mapping[int, frozenset[bytes]] | None = None
    module_ids: frozenset[str] | None = None
    max_age: int | None = None
    require_revocation_status: bool = False

    @classmethod
    def parse(cls, table: Fields) -> NitroPolicy:
        """Strictly; raises `MalformedInput`."""
        pcrs = None
        if table.has("pcrs"):
            inner = table.table("pcrs")
            pcrs = {
                small_number(name, most=31, where=f"{inner.where}: PCR"): _values(inner, name) for name in inner.left()
            }
            inner.done()
        policy = cls(
            allow_debug=table.truth("allow_debug", default=False),
            pcrs=pcrs,
            module_ids=frozenset(table.texts("module_ids")) if table.has("module_ids") else None,
            max_age=table.number("max_age") if table.has("max_age") else None,
            require_revocation_status=table.truth("require_revocation_status", default=False),
        )
        table.done()
        return policy


def _values(table: Fields, name: str) -> frozenset[bytes]:
    listed = table.value(name)
    listed = listed if isinstance(listed, list) else [listed]
    if not all(isinstance(each, str) for each in listed):
        raise MalformedInput(f"{table.where}: {name} is not a digest in hex, or a list of such")
    values = frozenset(unhex(each, where=f"{table.where}: {name}") for each in listed)
    if any(len(each) != _PCR_SIZE for each in values):
        raise MalformedInput(f"{table.where}: PCR{name} has 48 bytes")
    return values


class NitroVerifier:
    """The verifier of AWS Nitro Enclaves; see the module for bodies and endorsements."""

    tee = TEE

    def __init__(self, *, roots: Sequence[Certificate] | None = None) -> None:
        self._roots = roots

    def policy(self, table: Fields) -> NitroPolicy:
        """Parse the ``[aws-nitro]`` table; raises `MalformedInput`."""
        return NitroPolicy.parse(table)

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: NitroPolicy, checks: Checklist
    ) -> Claims:
        """Signature, chain to the root, dates; raises `EvidenceMalformed`."""
        with at_the_door("Nitro evidence"):
            body = Fields(evidence.body, where="aws-nitro")
            octets = base64_field(body, "document", limit=LARGEST_DOCUMENT)
            body.done()
        signed = Sign1.parse(octets, what="Nitro document")
        document = AttestationDocument.parse(signed.payload)
        leaf = parse_certificate(document.certificate, what="Nitro certificate")
        bundle = [
            parse_certificate(each, what=f"Nitro cabundle, certificate {number}")
            for number, each in enumerate(document.cabundle)
        ]
        if signed.unprotected:
            raise EvidenceMalformed("Nitro document: an unprotected header")
        key = leaf.public_key()
        if checks.that(
            signed.suits(key), "nitro.algorithm", Word.ALGORITHM, expected="ECDSA with SHA-2 on the key's curve",
            found=signed.algorithm_name, source=SOURCE,
            hint="the Nitro hypervisor signs with ES384: this document was changed, or was made elsewhere",
        ):  # fmt: skip
            good = signed.verifies(key)
            checks.that(
                good, "nitro.signature", Word.SIGNATURE, expected="signed by the document's certificate",
                found="that signature" if good else "another signature", source=SOURCE,
                hint="the document was changed after the hypervisor signed it",
            )  # fmt: skip
        roots = self._roots or (root("aws_nitro_root_g1.pem"),)
        path = verify_chain([leaf, *reversed(bundle)], roots=roots, now=now, checks=checks, name="nitro", source=SOURCE)
        if path is not None:
            check_status(
                path, Lists.parse(endorsements.items), now=now, checks=checks, name="nitro",
                required=policy.require_revocation_status,
            )  # fmt: skip
        if policy.max_age is not None:
            age = int((now - document.timestamp).total_seconds())
            checks.that(
                0 <= age <= policy.max_age, "nitro.age", Word.VALIDITY_PERIOD, expected=f"at most {policy.max_age} s",
                found=f"{age} s", source=SOURCE, hint="ask for a fresh document",
            )  # fmt: skip
        return _claims(document)

    def appraise(self, claims: Claims, policy: NitroPolicy, checks: Checklist) -> None:
        """Debug, PCRs, module and age against `policy`."""
        pcrs: Mapping[str, bytes] = claims["pcrs"]
        debug = [index for index in range(3) if not any(pcrs.get(str(index), b""))]
        checks.that(
            policy.allow_debug or not debug, "nitro.debug", Word.DEBUG, expected="PCR0, PCR1 and PCR2 measured",
            found=f"all zero: {', '.join(f'PCR{index}' for index in debug)}" if debug else "measured", source=SOURCE,
            hint="this enclave runs in debug mode, its console is the host's: start it without --debug-mode",
        )  # fmt: skip
        for index, allowed in sorted((policy.pcrs or {}).items()):
            found = pcrs.get(str(index), b"")
            checks.that(
                found in allowed, f"nitro.pcr{index}", Word.MEASUREMENT,
                expected=" or ".join(sorted(each.hex() for each in allowed)) or "nothing is allowed: the list is empty",
                found=found.hex() or "no such PCR", source=SOURCE,
                hint="`nitro-cli describe-eif` prints the PCRs of the image that you meant to run",
            )  # fmt: skip
        if policy.pcrs is not None and not policy.pcrs:
            checks.that(
                False, "nitro.pcrs", Word.MEASUREMENT, expected="nothing is allowed: the table pcrs is empty",
                found="a document", source=SOURCE, hint="name the registers of your image, or leave the table out",
            )  # fmt: skip
        if policy.module_ids is not None:
            checks.that(
                claims["module_id"] in policy.module_ids, "nitro.module", Word.IDENTITY,
                expected=" or ".join(sorted(policy.module_ids)) or "nothing is allowed: the list is empty",
                found=claims["module_id"], source=SOURCE,
                hint="another enclave or instance than you named; if it is yours, add it to module_ids",
            )  # fmt: skip


def _claims(document: AttestationDocument) -> Claims:
    values: dict[str, Any] = {
        "module_id": document.module_id,
        "timestamp": document.timestamp,
        "pcrs": {str(index): digest for index, digest in sorted(document.pcrs.items())},
        "public_key": document.public_key,
        "user_data": document.user_data,
        "nonce": document.nonce,
    }
    claims = {name: Claim(value) for name, value in values.items()}
    return Claims(TEE, claims, document.user_data, device_id=document.module_id)
