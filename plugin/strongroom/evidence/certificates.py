"""X.509 certificates and CRLs, read strictly and followed to a pinned root.

Every certificate of this package comes in through `parse_certificate` or `parse_chain`:
AMD's have serial number 0, which `cryptography` announces it will refuse one day, and then
one function changes. Signatures are checked by `cryptography`; what stands here is which
of them we accept (no SHA-1, no short RSA), path rules after RFC 5280 section 6.1 (names,
CA bit, path length, key usage, unknown critical extensions), dates against a clock that is
handed in. Roots are pinned by their public key. Revocation is `revocation`'s, lists are `crl`'s.

What follows from octets alone is worked out once: a certificate's decoding, its name, and that
its issuer signed it. What depends on the clock, the policy or the pinned root never is (ADR 0066).
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from strongroom.encoding import unb64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.types import Checklist, Word

LONGEST_CHAIN = 8
LONGEST_CERTIFICATE = 1 << 14
"""Bytes of DER; vendors' have 500 to 2,500."""
REMEMBERED = 256
"""How many certificates and links are remembered, the latest used: some 2 MB, 30 if all are the longest there are."""
_HASHES = frozenset({"sha256", "sha384", "sha512"})
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\r?\n([A-Za-z0-9+/=\r\n]+?)\r?\n-----END \1-----")
SPACE = b" \t\r\n\0"
UNREADABLE = (
    ValueError, TypeError, LookupError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What `cryptography` raises while it decodes: a list that grew by fuzzing, since it documents none."""
_warning_filters = threading.Lock()


@contextmanager
def quietly() -> Iterator[None]:
    """Without `cryptography`'s warnings, such as the one for serial number 0; filters are the process's, so in turn."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse_certificate(octets: bytes, *, what: str) -> x509.Certificate:
    """One certificate, in DER or PEM, of at most 16 KiB, with nothing after it.

    Keys, names, dates and extensions are decoded here, so that nothing raises later. Raises
    `EvidenceMalformed`, also for a public key that is not on its curve.
    """
    if octets.lstrip(SPACE).startswith(b"-----BEGIN"):
        chain = parse_chain(octets, what=what)
        if len(chain) != 1:
            raise EvidenceMalformed(f"{what}: one certificate is expected, found {len(chain)}")
        return chain[0]
    if len(octets) > LONGEST_CERTIFICATE:
        raise EvidenceMalformed(f"{what}: {len(octets)} bytes, the limit is {LONGEST_CERTIFICATE}")
    try:
        return _decoded(octets)
    except UNREADABLE as error:
        raise EvidenceMalformed(f"{what}: not an X.509 certificate that can be read") from error


@lru_cache(maxsize=REMEMBERED)
def _decoded(octets: bytes) -> x509.Certificate:
    with quietly():
        certificate = x509.load_der_x509_certificate(octets)
        _touch(certificate)
        whole_octets(octets, certificate.signature)
    return certificate


def _touch(certificate: x509.Certificate) -> None:
    """Decode everything that `cryptography` leaves for later."""
    certificate.public_key()
    certificate.extensions  # noqa: B018
    certificate.issuer, certificate.subject  # noqa: B018
    certificate.not_valid_before_utc, certificate.not_valid_after_utc  # noqa: B018
    certificate.serial_number  # noqa: B018


def whole_octets(octets: bytes, signature: bytes) -> None:
    """Refuse a signature whose BIT STRING leaves bits unused: a second spelling of the same certificate."""
    if not octets.endswith(b"\0" + signature):
        raise ValueError("a signature with unused bits")


def parse_chain(octets: bytes, *, what: str) -> tuple[x509.Certificate, ...]:
    """A PEM file of 1 to 8 certificates, in the order in which they stand; raises `EvidenceMalformed`.

    Between and around them only white space may stand (and the NUL that some quotes end with).
    """
    chain = tuple(
        parse_certificate(der, what=f"{what}, certificate {number}")
        for number, der in enumerate(pem_blocks(octets, b"CERTIFICATE", what))
    )
    if not 1 <= len(chain) <= LONGEST_CHAIN:
        raise EvidenceMalformed(f"{what}: 1 to {LONGEST_CHAIN} certificates are expected, found {len(chain)}")
    return chain


def pem_blocks(octets: bytes, label: bytes, what: str) -> list[bytes]:
    """The contents of PEM blocks of one kind, with nothing but white space around them; raises `EvidenceMalformed`."""
    blocks, rest = [], octets.strip(SPACE)
    while rest:
        found = _PEM.match(rest)
        if found is None or found[1] != label:
            raise EvidenceMalformed(f"{what}: not PEM of the kind {label.decode()}")
        try:
            blocks.append(unb64(re.sub(rb"[\r\n]", b"", found[2]).decode("ascii"), where=what))
        except MalformedInput as error:
            raise EvidenceMalformed(str(error)) from error
        rest = rest[found.end() :].lstrip(SPACE)
    return blocks


def extension(certificate: x509.Certificate, oid: str) -> bytes | None:
    """The raw DER value of the extension with that dotted name, or None."""
    for each in certificate.extensions:
        if each.oid.dotted_string == oid:
            value: bytes = each.value.public_bytes()
            return value
    return None


def public_key_info(certificate: x509.Certificate) -> bytes:
    """The certificate's SubjectPublicKeyInfo in DER: what pinning and 'the same key' compare."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=REMEMBERED)
def name_of(certificate: x509.Certificate) -> str:
    """The subject for people, as RFC 4514 writes it."""
    return certificate.subject.rfc4514_string() or "(no name)"


def serial_of(certificate: x509.Certificate) -> int:
    """The serial number, 0 for AMD's VCEKs, without the warning that `cryptography` has for it."""
    with quietly():
        return certificate.serial_number


def verify_chain(
    chain: Sequence[x509.Certificate],
    *,
    roots: Iterable[x509.Certificate],
    now: datetime,
    checks: Checklist,
    name: str,
    understood: frozenset[str] = frozenset(),
    source: str = "RFC 5280 section 6.1",
) -> tuple[x509.Certificate, ...] | None:
    """Follow `chain` (leaf first) to one of the pinned `roots`; the path from leaf to root, or None.

    Records ``<name>.chain`` (`Word.CHAIN`), ``<name>.algorithm`` (`Word.ALGORITHM`, only where it
    fails) and ``<name>.validity`` (`Word.VALIDITY_PERIOD`, every certificate, the root included).
    The chain may end with the root itself or just below it; each certificate must be issued by the
    next, so a chain in another order is refused. `understood` names further critical extensions that
    the caller reads itself. A path is returned although its dates failed: the dates have their own check.
    """
    pinned = tuple(roots)
    weak = [f"{name_of(each)}: {trouble}" for each in chain if (trouble := weakness(each))]
    if weak:
        checks.that(
            False, f"{name}.algorithm", Word.ALGORITHM, expected="RSA from 2048 bits or NIST curves, with SHA-2",
            found="; ".join(weak), source=source, hint="these certificates cannot be trusted; get newer ones",
        )  # fmt: skip
        check_validity(chain, now=now, checks=checks, name=name, source=source)
        return None
    path, trouble = _path(tuple(chain), pinned, understood)
    checks.that(
        path is not None, f"{name}.chain", Word.CHAIN,
        expected="issued, link by link, by " + " or ".join(name_of(each) for each in pinned),
        found=trouble or " < ".join(name_of(each) for each in chain), source=source,
        hint="hand in the certificates of this very device, leaf first, with its vendor's intermediates",
    )  # fmt: skip
    check_validity(path or chain, now=now, checks=checks, name=name, source=source)
    return path


def _path(
    chain: tuple[x509.Certificate, ...], pinned: tuple[x509.Certificate, ...], understood: frozenset[str]
) -> tuple[tuple[x509.Certificate, ...] | None, str]:
    if not 1 <= len(chain) <= LONGEST_CHAIN:
        return None, f"{len(chain)} certificates"
    keys = {public_key_info(each): each for each in pinned}
    anchor = keys.get(public_key_info(chain[-1]))
    if anchor is not None and anchor.subject == chain[-1].subject:
        path = chain  # the key is pinned; what else its certificate says still has to be signed by that key
    else:
        anchor = next((each for each in pinned if each.subject == chain[-1].issuer), None)
        if anchor is None:
            return None, f"{name_of(chain[-1])} was issued by {chain[-1].issuer.rfc4514_string() or '(no name)'}"
        path = (*chain, anchor)
    for depth, certificate in enumerate(path):
        issuer = path[depth + 1] if depth + 1 < len(path) else None
        if issuer is None and certificate != anchor:
            issuer = anchor
        trouble = _trouble(certificate, issuer, depth, understood)
        if trouble:
            return None, f"{name_of(certificate)}: {trouble}"
    return path, ""


def _trouble(
    certificate: x509.Certificate, issuer: x509.Certificate | None, depth: int, understood: frozenset[str]
) -> str:
    """What is wrong with one link: `certificate`, with `depth` certificates below it, and its issuer."""
    for each in certificate.extensions:
        if each.critical and each.oid not in _UNDERSTOOD and each.oid.dotted_string not in understood:
            return f"critical extension {each.oid.dotted_string} is not known here"
    if depth > 0:
        trouble = _not_a_ca(certificate, depth - 1)
        if trouble:
            return trouble
    if issuer is None:
        return ""  # the pinned root: its key is trusted for what it is
    try:
        _issued(certificate, issuer)
    except InvalidSignature:
        return f"its signature is not by {name_of(issuer)}"
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"was not issued by {name_of(issuer)}"
    return ""


@lru_cache(maxsize=REMEMBERED)
def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Returns where `issuer` signed `certificate`, else raises; only what returned is remembered."""
    certificate.verify_directly_issued_by(issuer)


def forget() -> None:
    """Empty the memory of certificates, for measurements of a first verdict."""
    for each in (_decoded, name_of, _issued):
        each.cache_clear()


def _not_a_ca(certificate: x509.Certificate, intermediates_below: int) -> str:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "is not marked as a CA"
    if not constraints.ca:
        return "is not a CA"
    if constraints.path_length is not None and intermediates_below > constraints.path_length:
        return f"path length {constraints.path_length}, with {intermediates_below} intermediates below it"
    return "" if may(certificate, "key_cert_sign") else "may not sign certificates"


def may(certificate: x509.Certificate, usage: str) -> bool:
    """Whether key usage, where the certificate states it, includes `usage`."""
    try:
        return bool(getattr(certificate.extensions.get_extension_for_class(x509.KeyUsage).value, usage))
    except x509.ExtensionNotFound:
        return True


def weakness(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Why the algorithm that signed this, or the key inside it, is not accepted; empty where it is."""
    if isinstance(signed, x509.Certificate):
        key = signed.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            if key.key_size < 2048:
                return f"RSA key of {key.key_size} bits"
        elif isinstance(key, ec.EllipticCurvePublicKey):
            if not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
                return f"curve {key.curve.name}"
        elif not isinstance(key, ed25519.Ed25519PublicKey):
            return "an unknown kind of key"
    try:
        algorithm = signed.signature_hash_algorithm
        scheme = signed.signature_algorithm_parameters if isinstance(signed, x509.Certificate) else None
    except UNREADABLE:
        return f"signature algorithm {signed.signature_algorithm_oid.dotted_string}"
    if algorithm is None:  # Ed25519 hashes inside
        return "" if signed.signature_algorithm_oid == x509.SignatureAlgorithmOID.ED25519 else "no hash algorithm"
    if algorithm.name not in _HASHES:
        return f"signed with {algorithm.name}"
    if isinstance(scheme, padding.PSS) and scheme.mgf._algorithm.name not in _HASHES:
        return f"mask generation with {scheme.mgf._algorithm.name}"
    return ""


def check_validity(
    certificates: Iterable[x509.Certificate], *, now: datetime, checks: Checklist, name: str, source: str = ""
) -> bool:
    """Record ``<name>.validity``: every certificate's notBefore ≤ `now` ≤ notAfter."""
    listed = tuple(certificates)
    wrong = [each for each in listed if not each.not_valid_before_utc <= now <= each.not_valid_after_utc]
    begin = max((each.not_valid_before_utc for each in listed), default=now)
    end = min((each.not_valid_after_utc for each in listed), default=now)
    found = f"all valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
    if wrong:
        found = "; ".join(
            f"{name_of(each)}: {each.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} to "
            f"{each.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
            for each in wrong
        )
    return checks.that(
        not wrong, f"{name}.validity", Word.VALIDITY_PERIOD, expected=f"valid at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=found, source=source, hint="get a certificate that is valid now, or look at the clock",
    )  # fmt: skip
