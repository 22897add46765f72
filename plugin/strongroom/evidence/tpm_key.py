"""Which key signed a quote, what kind of key it is, and why it is believed.

A restricted signing key signs only what its TPM made or what cannot imitate it ("TPM 2.0 Library, Part 1",
revision 1.59, section 25.1). That is read from the key's public area, and the public area itself is believed
because of its Name: pinned, activated, or part of the qualified name that the quote carries under signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509 import Certificate

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import (
    name_of,
    parse_certificate,
    parse_chain,
    public_key_info,
    verify_chain,
)
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.tpm_certificate import EK_CERTIFICATE, GceInstance, is_endorsement
from strongroom.evidence.tpm_credential import Activation, key_digest
from strongroom.evidence.tpm_evidence import TpmEvidence
from strongroom.evidence.tpm_policy import TpmPolicy, ak_roots
from strongroom.evidence.tpm_quote import PART_2, AttestationKey
from strongroom.evidence.tpm_structures import (
    ATTRIBUTE_NAMES,
    DECRYPT,
    ENCRYPTED_DUPLICATION,
    FIXED_PARENT,
    FIXED_TPM,
    HASH_IDS,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    Quote,
    TpmPublic,
)
from strongroom.evidence.types import Checklist, Claim, Endorsements, RevocationStatus, Word

HIERARCHIES = {0x40000001: "owner", 0x4000000B: "endorsement", 0x4000000C: "platform", 0x40000007: "null"}
_PROFILE = "TCG EK Credential Profile 2.5 section 3"
_NAMES = "TPM 2.0 Library Part 1 section 16"


def load_spki(octets: bytes, *, what: str) -> AttestationKey:
    """An RSA or ECC public key from DER SubjectPublicKeyInfo; raises `EvidenceMalformed`."""
    try:
        key = load_der_public_key(octets)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceMalformed(f"{what}: not a SubjectPublicKeyInfo that can be read") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EvidenceMalformed(f"{what}: an RSA or ECC key is expected")
    return key


def primary_hierarchy(public: TpmPublic, qualified_signer: bytes) -> str:
    """The hierarchy under which a primary key of this public area has that qualified name, or "".

    A quote's signed qualifiedSigner is nameAlg and the digest of the parent's qualified name (for a primary
    key, its hierarchy's handle) and the key's Name, so it vouches for every attribute.
    """
    prefix = HASH_IDS[public.name_hash].to_bytes(2, "big")
    for handle, hierarchy in HIERARCHIES.items():
        digest = hashlib.new(public.name_hash, handle.to_bytes(4, "big") + public.name).digest()
        if prefix + digest == qualified_signer:
            return hierarchy
    return ""


@dataclass(slots=True)
class KeyExamination:
    """Looks at the attestation key of one body of evidence; records into `checks`, gathers `claims`."""

    body: TpmEvidence
    endorsements: Endorsements
    now: datetime
    policy: TpmPolicy
    checks: Checklist
    activation: Activation | None = None
    public: TpmPublic | None = None
    key: AttestationKey | None = None
    ek_digest: str = ""
    claims: dict[str, Claim] = field(default_factory=dict)

    def read_key(self) -> None:
        """Parse the key, its attributes and its Name; raises `EvidenceMalformed`."""
        body, checks = self.body, self.checks
        public = self.public = None if body.ak_pub is None else TpmPublic.parse(body.ak_pub)
        spki = None if body.ak_spki is None else load_spki(body.ak_spki, what="ak_spki")
        key = spki if public is None else public.public_key
        checks.that(
            key is not None, "tpm.ak", Word.EVIDENCE_MISSING, expected="the attestation key's public part",
            found="given" if key is not None else "none", source=f"{PART_2} section 12.2.4",
            hint="send ak_pub, the TPMT_PUBLIC of the attestation key",
        )  # fmt: skip
        if key is None:
            return
        self.claims["ak_key"] = Claim(key_digest(key).hex())
        if spki is not None and public is not None:
            checks.that(
                key_digest(spki) == key_digest(key), "tpm.ak-spki", Word.BINDING,
                expected="ak_spki and ak_pub to be one key", found=key_digest(spki).hex(),
                source=f"{PART_2} section 12.2.4", hint="send ak_pub alone",
            )  # fmt: skip
        strong = checks.that(
            key.key_size >= (256 if isinstance(key, ec.EllipticCurvePublicKey) else 2048), "tpm.ak-strength",
            Word.ALGORITHM, expected="RSA from 2048 bits or a NIST curve from 256", found=f"{key.key_size} bits",
            source="NIST SP 800-131A revision 2 section 3", hint="make a stronger attestation key",
        )  # fmt: skip
        self.key = key if strong else None
        if public is not None:
            self.claims["ak_name"] = Claim(public.name.hex())
            self._check_attributes(public)
            if body.ak_name is not None:
                checks.that(
                    body.ak_name == public.name, "tpm.ak-name", Word.BINDING, expected=public.name.hex(),
                    found=body.ak_name.hex(), source=_NAMES, hint="send ak_pub and its Name as the TPM gave them",
                )  # fmt: skip

    def _check_attributes(self, public: TpmPublic) -> None:
        wanted, unwanted = RESTRICTED | SIGN, DECRYPT
        if self.policy.ak_trust != "pinned":
            wanted |= FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
            unwanted |= ENCRYPTED_DUPLICATION
        have = public.attributes
        wrong = [f"{name} clear" for bit, name in ATTRIBUTE_NAMES.items() if wanted & bit and not have & bit]
        wrong += [f"{name} set" for bit, name in ATTRIBUTE_NAMES.items() if unwanted & have & bit]
        self.checks.that(
            not wrong, "tpm.ak-attributes", Word.POLICY_BITS,
            expected="a restricted signing key that was born in this TPM and cannot leave it",
            found=", ".join(wrong) or f"{have:#010x}", source=f"{PART_2} section 8.3.2",
            hint="make the attestation key with tpm2_createak, or let strongroom's attester make it",
        )  # fmt: skip

    def check_trust(self, quote: Quote | None) -> None:
        """Why the key is believed, by the policy's `ak_trust`; an EK certificate is always followed."""
        octets = self.endorsements.get("ek_cert") or self.body.ek_cert
        ek = None if octets is None else parse_certificate(octets, what="EK certificate")
        ek_good = ek is not None and self._check_ek(ek)
        if self.policy.ak_trust == "pinned":
            self._check_pinned()
        elif self.policy.ak_trust == "certificate":
            self._check_certificate(quote)
        else:
            self._check_activation(ek, ek_good)

    def _check_pinned(self) -> None:
        names = {str(claim.value) for name, claim in self.claims.items() if name in ("ak_key", "ak_name")}
        pinned = self.policy.pinned_aks
        if names:
            self.checks.note_revocation(RevocationStatus.NO_LIST)  # the list of pinned keys is what takes one back
            self.checks.that(
                bool(names & pinned), "tpm.pinned", Word.IDENTITY,
                expected="one of " + (", ".join(sorted(pinned)) or "none: the list is empty"),
                found=" or ".join(sorted(names)), source="docs/attestation/tpm.md, trust in the key",
                hint="if you know this key from its enrolment, add its Name to pinned_aks",
            )  # fmt: skip

    def _check_certificate(self, quote: Quote | None) -> None:
        octets = self.endorsements.get("ak_cert") or self.body.ak_cert
        self.checks.that(
            octets is not None, "tpm.ak-certificate", Word.COLLATERAL_MISSING, expected="a certificate of the AK",
            found="given" if octets is not None else "none", source=_PROFILE,
            hint='only some clouds certify attestation keys; elsewhere use ak_trust = "activated" or "pinned"',
        )  # fmt: skip
        if octets is None:
            return
        certificate = parse_certificate(octets, what="AK certificate")
        if self._follow(certificate, ak_roots(self.policy), name="tpm.ak-certificate"):
            instance = GceInstance.read(certificate)
            self.claims |= {name: Claim(value) for name, value in (instance.claims() if instance else {}).items()}
        if self.key is not None:
            certified = hashlib.sha256(public_key_info(certificate)).digest()
            self.checks.that(
                certified == key_digest(self.key), "tpm.ak-certified", Word.IDENTITY,
                expected=f"a certificate for key {key_digest(self.key).hex()}",
                found=f"{certified.hex()} ({name_of(certificate)})", source=_PROFILE,
                hint="the certificate is of another key: read it again from the TPM's NV memory",
            )  # fmt: skip
        self.checks.that(
            self.public is not None, "tpm.ak-public", Word.EVIDENCE_MISSING, expected="the key's TPMT_PUBLIC",
            found="given" if self.public is not None else "only its SubjectPublicKeyInfo",
            source=f"{PART_2} section 12.2.4", hint="send ak_pub: a bare key cannot show that it is restricted",
        )  # fmt: skip
        if self.public is not None and quote is not None:
            hierarchy = primary_hierarchy(self.public, quote.qualified_signer)
            self.claims["ak_hierarchy"] = Claim(hierarchy)
            self.checks.that(
                bool(hierarchy), "tpm.qualified-signer", Word.BINDING,
                expected="the qualified name of a primary key with this very public area",
                found=quote.qualified_signer.hex(), source=_NAMES,
                hint="send ak_pub as the TPM gave it; keys that clouds certify are primary keys",
            )  # fmt: skip

    def _check_activation(self, ek: Certificate | None, ek_good: bool) -> None:
        self.checks.that(
            ek is not None, "tpm.ek-certificate", Word.COLLATERAL_MISSING, expected="a certificate of the EK",
            found="given" if ek is not None else "none", source=_PROFILE,
            hint="read it from the TPM: tpm2_getekcertificate",
        )  # fmt: skip
        if ek is not None:
            self.checks.that(
                is_endorsement(ek), "tpm.ek-usage", Word.IDENTITY, expected=f"extended key usage {EK_CERTIFICATE}",
                found=name_of(ek), source="TCG EK Credential Profile 2.5 section 3.5.16",
                hint="this certificate is not for an endorsement key: a key in a file activates any credential",
            )  # fmt: skip
        digest = b"" if ek is None else hashlib.sha256(public_key_info(ek)).digest()
        proof, public = self.activation, self.public
        held = proof is not None and public is not None and (proof.ak_name, proof.ek) == (public.name, digest)
        self.checks.that(
            held, "tpm.activation", Word.BINDING,
            expected="in this session, a credential for this AK, activated by the TPM of this EK",
            found="so it was" if held else "another AK or EK" if proof else "no credential was activated",
            source="TPM 2.0 Library Part 1 section 24",
            hint="the broker challenges by extra-params of the key broker protocol: docs/attestation/tpm.md",
        )  # fmt: skip
        if held and ek_good:
            self.ek_digest = digest.hex()
            self.claims["ek_key"] = Claim(self.ek_digest)

    def _check_ek(self, ek: Certificate) -> bool:
        roots = self.policy.ek_roots
        return self.checks.that(
            bool(roots), "tpm.ek-roots", Word.COLLATERAL_MISSING, expected="the EK maker's certificates",
            found="given" if roots else "none", source=_PROFILE,
            hint="name the TPM maker's root in ek_roots, or do not send the EK certificate",
        ) and self._follow(ek, roots, name="tpm.ek-certificate")  # fmt: skip

    def _follow(self, leaf: Certificate, trusted: tuple[Certificate, ...], *, name: str) -> bool:
        """Chain `leaf` to a root among `trusted` and look up whether the chain still holds."""
        chain, roots = way_up(leaf, trusted, carried(self.body, self.endorsements))
        path = verify_chain(chain, roots=roots, now=self.now, checks=self.checks, name=name, source=_PROFILE)
        return path is not None and check_status(
            path, Lists.parse(self.endorsements.items), now=self.now, checks=self.checks, name=name,
            required=self.policy.require_revocation_status,
        )  # fmt: skip


def carried(body: TpmEvidence, endorsements: Endorsements) -> list[Certificate]:
    """The intermediates that came with evidence or beside it; raises `EvidenceMalformed`."""
    found = [parse_certificate(each, what="intermediate certificate") for each in body.certificates]
    if (pem := endorsements.get("certificates")) is not None:
        found += parse_chain(pem, what="certificates")
    return found


def way_up(
    leaf: Certificate, trusted: Sequence[Certificate], others: Iterable[Certificate]
) -> tuple[tuple[Certificate, ...], tuple[Certificate, ...]]:
    """(chain, roots): how `leaf` may lead to one of `trusted`, for `verify_chain` to look at.

    Roots are the self-signed among `trusted`; where none is, each of them is where a chain may end.
    """
    roots = tuple(each for each in trusted if each.subject == each.issuer) or tuple(trusted)
    pool = [each for each in trusted if each not in roots]
    return issued(leaf, (*pool, *others)), roots


def issued(leaf: Certificate, pool: Iterable[Certificate]) -> tuple[Certificate, ...]:
    """`leaf` and the certificates of `pool` that issued it by name, in order, eight at most."""
    chain, left = [leaf], list(pool)
    while len(chain) < 8:
        issuer = next((each for each in left if each.subject == chain[-1].issuer), None)
        if issuer is None:
            break
        left.remove(issuer)
        chain.append(issuer)
    return tuple(chain)
