"""The TPM 2.0 structures that a quote is made of, read strictly and written back.

TCG "TPM 2.0 Library, Part 2: Structures", revision 1.59; the section stands at each type. All numbers are
big-endian; TPM2B is a 2-byte length and that many bytes. Everything raises `EvidenceMalformed` where bytes
are missing, left over, or of a kind that no quote uses.

Judgement (which attributes, which algorithms) is `strongroom.evidence.tpm`'s.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from strongroom.encoding import Reader
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.door import at_the_door

RSA, KEYEDHASH, NULL, RSASSA, RSAES, RSAPSS, OAEP, ECDSA, ECC = (
    0x0001, 0x0008, 0x0010, 0x0014, 0x0015, 0x0016, 0x0017, 0x0018, 0x0023,
)  # fmt: skip
HASHES: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID (Part 2, section 6.3) → name in `hashlib`."""
HASH_IDS: Final = {name: number for number, name in HASHES.items()}
DIGEST_SIZES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
CURVES: Final[dict[int, type[ec.EllipticCurve]]] = {3: ec.SECP256R1, 4: ec.SECP384R1, 5: ec.SECP521R1}
SIGNATURE_SCHEMES: Final = {RSASSA: "RSASSA", RSAPSS: "RSAPSS", ECDSA: "ECDSA"}

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
ENCRYPTED_DUPLICATION, RESTRICTED, DECRYPT, SIGN = 1 << 11, 1 << 16, 1 << 17, 1 << 18
ATTRIBUTE_NAMES: Final = {
    FIXED_TPM: "fixedTPM", FIXED_PARENT: "fixedParent", SENSITIVE_DATA_ORIGIN: "sensitiveDataOrigin",
    ENCRYPTED_DUPLICATION: "encryptedDuplication", RESTRICTED: "restricted", DECRYPT: "decrypt", SIGN: "sign",
}  # fmt: skip
_ATTRIBUTES_RESERVED = 0xFFF0F309  # Part 2, section 8.3.2: bits 0, 3, 9-8, 15-12, 31-20

MAGIC = 0xFF544347
ST_ATTEST_QUOTE = 0x8018
PCRS = 24


def sized(read: Reader, *, limit: int) -> bytes:
    """A TPM2B of at most `limit` bytes."""
    size = read.uint(2)
    if size > limit:
        raise EvidenceMalformed(f"a TPM2B of {size} bytes, the limit is {limit}")
    return read.take(size)


def as_sized(octets: bytes) -> bytes:
    """The inverse of `sized`."""
    return len(octets).to_bytes(2, "big") + octets


def _hash_name(number: int, where: str) -> str:
    if number not in HASHES:
        raise EvidenceMalformed(f"{where}: hash algorithm {number:#06x} is not one that is known here")
    return HASHES[number]


@dataclass(frozen=True, slots=True)
class TpmPublic:
    """TPMT_PUBLIC of an RSA or ECC key (Part 2, section 12.2.4).

    `scheme` and `scheme_hash` are 0x0010 (NULL) and "" where the key does not fix them. RSA: `bits` and
    `exponent` (65537 is written as 0) and `unique` = (modulus,). ECC: `curve` and `unique` = (x, y).
    """

    kind: int
    name_hash: str
    attributes: int
    auth_policy: bytes
    symmetric: tuple[int, ...]
    scheme: int
    scheme_hash: str
    bits: int
    exponent: int
    curve: int
    kdf: tuple[int, ...]
    unique: tuple[bytes, ...]

    @classmethod
    def parse(cls, octets: bytes) -> TpmPublic:
        """Read one TPMT_PUBLIC and nothing after it; raises `EvidenceMalformed`."""
        with at_the_door("TPMT_PUBLIC"):
            return cls._parse(Reader(octets, where="TPMT_PUBLIC"))

    @classmethod
    def _parse(cls, read: Reader) -> TpmPublic:
        kind, name_hash = read.uint(2), _hash_name(read.uint(2), "nameAlg")
        if kind not in (RSA, ECC):
            raise EvidenceMalformed(f"TPMT_PUBLIC of type {kind:#06x}: an RSA or ECC key is expected")
        attributes, auth_policy = read.uint(4), sized(read, limit=64)
        if attributes & _ATTRIBUTES_RESERVED:
            raise EvidenceMalformed(f"object attributes {attributes:#010x} hold reserved bits")
        symmetric: tuple[int, ...] = (read.uint(2),)
        if symmetric[0] != NULL:
            symmetric += (read.uint(2), read.uint(2))
        scheme, scheme_hash = read.uint(2), ""
        if scheme not in (NULL, RSAES):
            if scheme not in (RSASSA, RSAPSS, OAEP, ECDSA):
                raise EvidenceMalformed(f"key scheme {scheme:#06x} is not one that is known here")
            scheme_hash = _hash_name(read.uint(2), "key scheme")
        bits = exponent = curve = 0
        kdf: tuple[int, ...] = ()
        if kind == RSA:
            bits, exponent = read.uint(2), read.uint(4)
            unique: tuple[bytes, ...] = (sized(read, limit=512),)
            if len(unique[0]) * 8 != bits:
                raise EvidenceMalformed(f"an RSA key of {bits} bits with a modulus of {len(unique[0])} bytes")
        else:
            curve = read.uint(2)
            kdf = (read.uint(2),)
            if kdf[0] != NULL:
                kdf += (read.uint(2),)
            unique = (sized(read, limit=66), sized(read, limit=66))
            if curve not in CURVES:
                raise EvidenceMalformed(f"curve {curve:#06x} is not one that is known here")
        read.done()
        return cls(
            kind, name_hash, attributes, auth_policy, symmetric, scheme, scheme_hash, bits, exponent, curve, kdf, unique
        )

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        parts = [
            self.kind.to_bytes(2, "big"), HASH_IDS[self.name_hash].to_bytes(2, "big"),
            self.attributes.to_bytes(4, "big"), as_sized(self.auth_policy),
            *(each.to_bytes(2, "big") for each in self.symmetric), self.scheme.to_bytes(2, "big"),
        ]  # fmt: skip
        if self.scheme_hash:
            parts.append(HASH_IDS[self.scheme_hash].to_bytes(2, "big"))
        if self.kind == RSA:
            parts += [self.bits.to_bytes(2, "big"), self.exponent.to_bytes(4, "big")]
        else:
            parts += [self.curve.to_bytes(2, "big"), *(each.to_bytes(2, "big") for each in self.kdf)]
        return b"".join(parts + [as_sized(each) for each in self.unique])

    @property
    def name(self) -> bytes:
        """The object's Name: nameAlg and the digest of the public area (Part 1, section 16)."""
        digest = hashlib.new(self.name_hash, self.serialise()).digest()
        return HASH_IDS[self.name_hash].to_bytes(2, "big") + digest

    @property
    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The key for `cryptography`; raises `EvidenceMalformed` for a point off its curve or an odd modulus."""
        try:
            if self.kind == RSA:
                return rsa.RSAPublicNumbers(self.exponent or 65537, int.from_bytes(self.unique[0], "big")).public_key()
            x, y = (int.from_bytes(each, "big") for each in self.unique)
            return ec.EllipticCurvePublicNumbers(x, y, CURVES[self.curve]()).public_key()
        except ValueError as error:
            raise EvidenceMalformed("TPMT_PUBLIC: not a usable public key") from error


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """Which PCRs of one bank: TPMS_PCR_SELECTION (Part 2, section 10.6.2)."""

    bank: str
    indices: tuple[int, ...]
    octets: int = 3

    def serialise(self) -> bytes:
        """Algorithm, size of the bitmap (3 bytes for 24 PCRs) and the bitmap."""
        bitmap = sum(1 << index for index in self.indices)
        return (
            HASH_IDS[self.bank].to_bytes(2, "big")
            + self.octets.to_bytes(1, "big")
            + bitmap.to_bytes(self.octets, "little")
        )

    @classmethod
    def read(cls, read: Reader) -> PcrSelection:
        """The inverse of `serialise`; raises `EvidenceMalformed`."""
        bank, octets = _hash_name(read.uint(2), "PCR selection"), read.uint(1)
        if not 1 <= octets <= 4:
            raise EvidenceMalformed(f"a PCR bitmap of {octets} bytes")
        bitmap = int.from_bytes(read.take(octets), "little")
        if bitmap >> PCRS:
            raise EvidenceMalformed("a PCR above 23 is selected")
        return cls(bank, tuple(index for index in range(PCRS) if bitmap >> index & 1), octets)


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST of the kind quote (Part 2, sections 10.12.12 and 10.12.4).

    `clock` is in milliseconds; `selections` are as the TPM ordered them; `pcr_digest` is over the selected
    values, by the hash of the *signing scheme*.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Quote:
        """Read one TPMS_ATTEST and nothing after it.

        Raises `EvidenceMalformed`, also where the magic says that no TPM made it, or the type that it is
        something else than a quote.
        """
        with at_the_door("TPMS_ATTEST"):
            return cls._parse(Reader(octets, where="TPMS_ATTEST"))

    @classmethod
    def _parse(cls, read: Reader) -> Quote:
        magic, kind = read.uint(4), read.uint(2)
        if magic != MAGIC:
            raise EvidenceMalformed(
                f"magic {magic:#010x}: what was signed did not come from inside a TPM",
                hint="sign with a restricted key; only then a TPM refuses to sign forged structures",
            )
        if kind != ST_ATTEST_QUOTE:
            raise EvidenceMalformed(f"type {kind:#06x}: a quote (0x8018) is expected")
        signer, extra = sized(read, limit=66), sized(read, limit=66)
        clock, resets, restarts, safe = read.uint(8), read.uint(4), read.uint(4), read.uint(1)
        if safe > 1:
            raise EvidenceMalformed(f"TPMI_YES_NO is {safe}")
        firmware, count = read.uint(8), read.uint(4)
        if count > 16:
            raise EvidenceMalformed(f"{count} PCR selections")
        selections = tuple(PcrSelection.read(read) for _ in range(count))
        if len({each.bank for each in selections}) != count:
            raise EvidenceMalformed("a PCR bank is selected twice")
        digest = sized(read, limit=64)
        read.done()
        return cls(signer, extra, clock, resets, restarts, bool(safe), firmware, selections, digest)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        return b"".join(
            (
                MAGIC.to_bytes(4, "big"), ST_ATTEST_QUOTE.to_bytes(2, "big"), as_sized(self.qualified_signer),
                as_sized(self.extra_data), self.clock.to_bytes(8, "big"), self.reset_count.to_bytes(4, "big"),
                self.restart_count.to_bytes(4, "big"), bytes((self.safe,)), self.firmware_version.to_bytes(8, "big"),
                len(self.selections).to_bytes(4, "big"), *(each.serialise() for each in self.selections),
                as_sized(self.pcr_digest),
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TpmSignature:
    """TPMT_SIGNATURE by RSASSA, RSAPSS or ECDSA (Part 2, section 11.3.4).

    `parts` is (signature,) for RSA and (r, s) for ECDSA.
    """

    scheme: int
    hash_name: str
    parts: tuple[bytes, ...]

    @classmethod
    def parse(cls, octets: bytes) -> TpmSignature:
        """Read one TPMT_SIGNATURE and nothing after it; raises `EvidenceMalformed`."""
        with at_the_door("TPMT_SIGNATURE"):
            read = Reader(octets, where="TPMT_SIGNATURE")
            scheme = read.uint(2)
            if scheme not in SIGNATURE_SCHEMES:
                raise EvidenceMalformed(f"signature algorithm {scheme:#06x} is not one that is known here")
            name = _hash_name(read.uint(2), "signature")
            count, limit = (2, 66) if scheme == ECDSA else (1, 512)
            parts = tuple(sized(read, limit=limit) for _ in range(count))
            read.done()
            return cls(scheme, name, parts)

    def serialise(self) -> bytes:
        """The exact inverse of `parse`."""
        head = self.scheme.to_bytes(2, "big") + HASH_IDS[self.hash_name].to_bytes(2, "big")
        return head + b"".join(as_sized(each) for each in self.parts)

    @property
    def scheme_name(self) -> str:
        """``RSASSA``, ``RSAPSS`` or ``ECDSA``."""
        return SIGNATURE_SCHEMES[self.scheme]
