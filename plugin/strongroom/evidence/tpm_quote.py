"""What makes a TPM quote good: its signature, its nonce, and PCR values that its digest covers.

"TPM 2.0 Library, Part 3: Commands", revision 1.59, section 18.4 (TPM2_Quote). Used for a TPM of its own and for
the virtual one behind Azure's paravisor. SHA-1 is refused wherever it appears, in the signature and in the
bank of the PCRs, whatever a policy says.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from strongroom.encoding import Fields, small_number, unhex
from strongroom.errors import MalformedInput
from strongroom.evidence.tpm_structures import (
    DIGEST_SIZES,
    ECC,
    ECDSA,
    NULL,
    PCRS,
    RSASSA,
    Quote,
    TpmPublic,
    TpmSignature,
)
from strongroom.evidence.types import Checklist, Word

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PART_2, PART_3 = "TPM 2.0 Library Part 2", "TPM 2.0 Library Part 3 section 18.4"
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512(),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PcrPolicy:
    """The PCR part of a policy: allowed values of each named register, in lower-case hex.

    An empty list for a register allows nothing.
    """

    allowed: Mapping[int, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, table: Fields) -> PcrPolicy:
        """From ``pcrs = { "7" = "hex" or ["hex", …] }``; raises `MalformedInput`."""
        if not table.has("pcrs"):
            return cls()
        inner = table.table("pcrs")
        allowed = {}
        for name in inner.left():
            index = pcr_index(name, where=inner.where)
            value = inner.value(name)
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str) and len(each) in (40, 64, 96, 128) for each in values):
                raise MalformedInput(f"{inner.where}: {name} is not a digest in hex, or a list of such")
            allowed[index] = frozenset(unhex(each, where=f"{inner.where}: {name}").hex() for each in values)
        return cls(allowed)

    def appraise(self, quoted: Mapping[str, str] | None, checks: Checklist, *, name: str) -> None:
        """Record one check for each register that the policy names; `quoted` is index → hex.

        It is None where no quote vouches for any value: what failed then is in `checks`, and says why.
        """
        if quoted is None and checks.failed:
            return
        quoted = quoted or {}
        for index, allowed in sorted(self.allowed.items()):
            found = quoted.get(str(index), "")
            checks.that(
                found in allowed, f"{name}.pcr{index}", Word.MEASUREMENT,
                expected=" or ".join(sorted(allowed)) or "nothing is allowed: the list is empty",
                found=found or "not quoted", source="TCG PC Client Platform Firmware Profile section 3.3.4",
                hint=f"another boot or configuration than the one you know: look at the events of PCR {index}",
            )  # fmt: skip


def pcr_index(text: str, *, where: str) -> int:
    """A register's number, 0 to 23, in plain decimal; raises `MalformedInput`."""
    return small_number(text, most=PCRS - 1, where=f"{where}: PCR")


def parse_pcrs(value: object, *, bank: str, where: str) -> dict[int, bytes]:
    """PCR values as an object of index → hex, or a list that begins with PCR 0; raises `MalformedInput`."""
    items: list[tuple[str, object]]
    if isinstance(value, list):
        items = [(str(index), each) for index, each in enumerate(value)]
    elif isinstance(value, Mapping):
        items = [(str(name), each) for name, each in value.items()]
    else:
        raise MalformedInput(f"{where}: PCR values are an object or a list")
    values: dict[int, bytes] = {}
    for name, text in items:
        octets = unhex(text, where=where) if isinstance(text, str) else b""
        if len(octets) != DIGEST_SIZES[bank]:
            raise MalformedInput(f"{where}: PCR {name} is not {DIGEST_SIZES[bank]} bytes in hex")
        values[pcr_index(name, where=where)] = octets
    return values


def check_algorithms(signature: TpmSignature, bank: str, checks: Checklist, *, name: str) -> bool:
    """Record that neither the signature nor the bank is SHA-1."""
    good = checks.that(
        signature.hash_name in _HASHES, f"{name}.signature-algorithm", Word.ALGORITHM,
        expected="SHA-256, SHA-384 or SHA-512", found=f"{signature.scheme_name} with {signature.hash_name}",
        source=f"{PART_2} section 11.3.4", hint="make the attestation key with SHA-256; SHA-1 is broken",
    )  # fmt: skip
    return checks.that(
        bank != "sha1", f"{name}.bank", Word.ALGORITHM, expected="PCRs of a SHA-2 bank", found=bank,
        source="NIST SP 800-131A revision 2 section 9", hint="quote the SHA-256 bank: tpm2_quote -l sha256:…",
    ) and good  # fmt: skip


def check_signature(
    message: bytes, signature: TpmSignature, key: AttestationKey, checks: Checklist, *, name: str
) -> bool:
    """Record whether `key` signed the TPMS_ATTEST bytes."""
    return checks.that(
        _signed(message, signature, key), f"{name}.signature", Word.SIGNATURE,
        expected="the quote signed by the attestation key", found=f"{signature.scheme_name} {signature.hash_name}",
        source=PART_3, hint="the quote was changed, or another TPM made it: quote again",
    )  # fmt: skip


def _signed(message: bytes, signature: TpmSignature, key: AttestationKey) -> bool:
    algorithm = _HASHES.get(signature.hash_name)
    if algorithm is None or isinstance(key, ec.EllipticCurvePublicKey) != (signature.scheme == ECDSA):
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            r, s = (int.from_bytes(part, "big") for part in signature.parts)
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(algorithm))
        elif signature.scheme == RSASSA:
            key.verify(signature.parts[0], message, padding.PKCS1v15(), algorithm)
        else:
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            key.verify(signature.parts[0], message, pss, algorithm)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_nonce(quote: Quote, checks: Checklist, *, name: str, allow_empty: bool = False) -> bool:
    """Record that the quote was made for a challenge; which one, the binding check says."""
    return checks.that(
        allow_empty or bool(quote.extra_data), f"{name}.nonce", Word.NONCE, expected="a challenge in extraData",
        found=f"{len(quote.extra_data)} bytes", source=PART_3,
        hint="without a nonce the quote may be years old: quote with the verifier's challenge",
    )  # fmt: skip


def check_pcrs(
    quote: Quote, values: Mapping[int, bytes] | None, bank: str, hash_name: str, checks: Checklist, *, name: str
) -> dict[int, bytes] | None:
    """Record that the quote's digest covers these values; the covered ones, or None.

    The digest is made with the hash of the signing scheme, not of the bank (Part 3, section 18.4.1). Values
    of registers that the quote did not select are dropped: nothing vouches for them.
    """
    given = checks.that(
        values is not None, f"{name}.pcrs", Word.EVIDENCE_MISSING, expected="PCR values beside the quote",
        found="given" if values is not None else "none", source=PART_3, hint="send the PCR values of the quoted bank",
    )  # fmt: skip
    selected = [index for each in quote.selections if each.bank == bank for index in each.indices]
    others = [each.bank for each in quote.selections if each.bank != bank and each.indices]
    if not given or values is None or hash_name not in DIGEST_SIZES:
        return None
    missing = [index for index in selected if index not in values]
    complete = checks.that(
        bool(selected) and not missing, f"{name}.selection", Word.EVIDENCE_MISSING,
        expected=f"at least one {bank} register quoted, and the values of all that are",
        found=f"quoted: {_ranges(selected)}; values missing: {_ranges(missing)}", source=f"{PART_2} section 10.6.2",
        hint="quote the bank that is judged, and send every value",
    )  # fmt: skip
    if not complete:
        return None
    covered = {index: values[index] for index in selected}
    digest = hashlib.new(hash_name, b"".join(covered.values())).digest()
    good = checks.that(
        hmac.compare_digest(digest, quote.pcr_digest) and not others, f"{name}.pcr-digest", Word.SIGNATURE,
        expected=f"{hash_name} over the {bank} values: {digest.hex()}",
        found=quote.pcr_digest.hex() + (f", with banks {', '.join(others)} in it" if others else ""), source=PART_3,
        hint="the PCR values are not those that were quoted: read them in one go with the quote",
    )  # fmt: skip
    return covered if good else None


def _ranges(indices: list[int]) -> str:
    return ", ".join(map(str, indices)) or "none"


def scheme_matches(public: TpmPublic, signature: TpmSignature) -> bool:
    """Whether the signature is by the scheme that the key fixes, where it fixes one."""
    kind_fits = (public.kind == ECC) == (signature.scheme == ECDSA)
    fixed = public.scheme != NULL
    return kind_fits and (not fixed or (public.scheme, public.scheme_hash) == (signature.scheme, signature.hash_name))
