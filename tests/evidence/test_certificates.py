"""Certificates, chains and CRLs: what is followed, and every way of leading astray that is refused."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from evidence.pki import DAY, NOW, Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import (
    extension,
    parse_certificate,
    parse_chain,
    serial_of,
    verify_chain,
)
from strongroom.evidence.roots import DIGESTS, root
from strongroom.evidence.types import Checklist, Word

ROOT = Authority.root()
CA = ROOT.issue("CA", ca=True, path_length=0, usage=("key_cert_sign", "crl_sign"))
LEAF = CA.issue("Leaf", ca=False, usage=("digital_signature",))
CHAIN = (LEAF.certificate, CA.certificate)


def follow(chain, *, now=NOW, roots=(ROOT.certificate,), **options):
    checks = Checklist()
    path = verify_chain(chain, roots=roots, now=now, checks=checks, name="test", **options)
    return path, {check.word for check in checks.failed}


def test_a_chain_to_the_root_is_followed_with_and_without_the_root_in_it():
    for chain in (CHAIN, (*CHAIN, ROOT.certificate)):
        path, failed = follow(chain)
        assert path == (*CHAIN, ROOT.certificate)
        assert not failed


def test_a_chain_that_was_followed_before_is_judged_by_the_clock_and_the_pinned_roots_again():
    assert follow(CHAIN)[0] is not None
    assert follow(CHAIN, now=LEAF.certificate.not_valid_after_utc + timedelta(seconds=1))[1] == {Word.VALIDITY_PERIOD}
    assert follow(CHAIN, roots=(Authority.root().certificate,)) == (None, {Word.CHAIN})


def test_a_certificate_of_the_same_name_and_serial_number_is_not_taken_for_the_one_that_was_followed_before():
    assert follow(CHAIN)[0] is not None
    octets = bytearray(LEAF.certificate.public_bytes(Encoding.DER))
    octets[-1] ^= 1  # the last byte of the signature: name, serial number and key stay
    altered = parse_certificate(bytes(octets), what="leaf")
    assert altered.serial_number == LEAF.certificate.serial_number
    for _ in range(2):  # a refusal is not remembered either way
        assert follow((altered, CA.certificate)) == (None, {Word.CHAIN})


def test_a_certificate_that_is_longer_than_any_vendors_is_refused_unread():
    padding = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55738.1"), bytes(1 << 14))
    long = ROOT.issue("Long", ca=False, extensions=((padding, False),)).certificate
    with pytest.raises(EvidenceMalformed, match="the limit is 16384"):
        parse_certificate(long.public_bytes(Encoding.DER), what="leaf")


def test_the_root_alone_is_a_path_of_one():
    assert follow((ROOT.certificate,)) == ((ROOT.certificate,), set())


@pytest.mark.parametrize(
    "chain",
    [
        (),
        (LEAF.certificate,),
        (CA.certificate, LEAF.certificate),
        (ROOT.certificate, CA.certificate, LEAF.certificate),
        (LEAF.certificate, LEAF.certificate, CA.certificate),
        (LEAF.certificate, CA.certificate, CA.certificate),
        (LEAF.certificate, *[CA.certificate] * 9),
    ],
    ids=["empty", "no-intermediate", "reversed", "root-first", "leaf-twice", "intermediate-twice", "too-long"],
)
def test_a_chain_that_is_not_in_order_is_refused(chain):
    path, failed = follow(chain)
    assert path is None
    assert Word.CHAIN in failed


def test_another_root_of_the_same_name_is_refused():
    other = Authority.root()
    assert follow(CHAIN, roots=(other.certificate,)) == (None, {Word.CHAIN})


def test_a_root_with_the_pinned_key_under_another_name_is_refused():
    renamed = Authority.root("Other", key=ROOT.key)
    assert follow((LEAF.certificate, CA.certificate, renamed.certificate))[0] is None


def test_an_intermediate_that_is_no_ca_is_refused():
    for options in ({"ca": False}, {}, {"ca": True, "usage": ("digital_signature",)}):
        middle = ROOT.issue("Middle", **options)
        leaf = middle.issue("Leaf")
        assert follow((leaf.certificate, middle.certificate)) == (None, {Word.CHAIN})


def test_a_path_longer_than_its_issuer_allows_is_refused():
    lower = CA.issue("Lower", ca=True)
    leaf = lower.issue("Leaf")
    assert follow((leaf.certificate, lower.certificate, CA.certificate)) == (None, {Word.CHAIN})


def test_an_unknown_critical_extension_is_refused_unless_the_caller_reads_it():
    oid = x509.ObjectIdentifier("1.2.3.4")
    leaf = CA.issue("Leaf", extensions=((x509.UnrecognizedExtension(oid, b"\x05\x00"), True),))
    chain = (leaf.certificate, CA.certificate)
    assert follow(chain) == (None, {Word.CHAIN})
    assert follow(chain, understood=frozenset({"1.2.3.4"}))[0] is not None
    assert extension(leaf.certificate, "1.2.3.4") == b"\x05\x00"


def test_dates_have_their_own_word_and_leave_the_path():
    for now in (NOW - 400 * DAY, NOW + 400 * DAY):
        path, failed = follow(CHAIN, now=now)
        assert path is not None
        assert failed == {Word.VALIDITY_PERIOD}


def test_the_last_second_of_validity_is_valid_and_the_next_is_not():
    end = LEAF.certificate.not_valid_after_utc
    assert follow(CHAIN, now=end)[1] == set()
    assert follow(CHAIN, now=end + timedelta(seconds=1))[1] == {Word.VALIDITY_PERIOD}


def test_weak_keys_and_hashes_are_refused_as_algorithms():
    short = rsa.generate_private_key(65537, 1024)
    odd = ec.generate_private_key(ec.SECP256K1())
    sha1 = rsa.generate_private_key(65537, 2048)
    for leaf in (
        CA.issue("Short", key=short),
        CA.issue("Odd", key=odd),
        CA.issue("Short hash", algorithm=hashes.SHA224()),
    ):
        assert follow((leaf.certificate, CA.certificate)) == (None, {Word.ALGORITHM})
    root = Authority.root(key=sha1)
    pss = root.issue("PSS", pss=True)
    assert follow((pss.certificate,), roots=(root.certificate,))[1] == set()


@settings(deadline=None)  # a busy machine is no finding
@given(st.data())
def test_no_single_bit_of_a_certificate_can_be_flipped(data):
    which = data.draw(st.integers(0, 1))
    octets = bytearray(CHAIN[which].public_bytes(Encoding.DER))
    at = data.draw(st.integers(0, 8 * len(octets) - 1))
    octets[at // 8] ^= 1 << at % 8
    try:
        changed = parse_certificate(bytes(octets), what="changed")
    except EvidenceMalformed:
        return
    chain = list(CHAIN)
    chain[which] = changed
    path, failed = follow(chain)
    assert path is None
    assert failed & {Word.CHAIN, Word.ALGORITHM}


@settings(deadline=None)  # a busy machine is no finding
@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_raise_our_error_only(octets):
    for parse in (parse_certificate, parse_chain):
        with pytest.raises(EvidenceMalformed):
            parse(octets, what="noise")


@pytest.mark.parametrize(
    ("oid", "value"),
    [("2.5.29.17", "3004a3020500"), ("1.3.6.1.5.5.7.1.24", "3003020106")],
    ids=["a general name of an unknown kind", "a TLS feature of an unknown number"],
)
def test_an_extension_that_cannot_be_decoded_raises_our_error_only(oid, value):
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes.fromhex(value))
    octets = CA.issue("Leaf", extensions=((odd, False),)).certificate.public_bytes(Encoding.DER)
    with pytest.raises(EvidenceMalformed):
        parse_certificate(octets, what="leaf")


def test_bytes_after_a_certificate_are_refused():
    octets = LEAF.certificate.public_bytes(Encoding.DER)
    with pytest.raises(EvidenceMalformed):
        parse_certificate(octets + b"\0", what="long")
    pem = LEAF.certificate.public_bytes(Encoding.PEM)
    assert parse_certificate(pem, what="pem") == LEAF.certificate
    for more in (b"x", pem):
        with pytest.raises(EvidenceMalformed):
            parse_certificate(pem + more, what="long")


def test_a_second_spelling_of_a_signature_is_refused():
    authority = Authority.root()
    while authority.certificate.signature[-1] & 3:  # two zero bits at the end can be called unused
        authority = Authority.root()
    octets = bytearray(authority.certificate.public_bytes(Encoding.DER))
    octets[-len(authority.certificate.signature) - 1] = 2
    assert x509.load_der_x509_certificate(bytes(octets)).signature == authority.certificate.signature
    with pytest.raises(EvidenceMalformed):
        parse_certificate(bytes(octets), what="respelt")


def test_a_pem_file_keeps_the_order_of_its_certificates():
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in CHAIN)
    assert parse_chain(pem + b"\0", what="chain") == CHAIN


def test_a_certificate_with_serial_number_zero_is_read_without_a_warning(shared_evidence):
    octets = (shared_evidence / "sev-snp/milan-v2-vcek/vcek.der").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert serial_of(parse_certificate(octets, what="VCEK")) == 0


@pytest.mark.parametrize("name", DIGESTS)
def test_every_root_that_the_package_carries_is_the_recorded_file(name):
    certificate = root(name)
    issuers = [root(each) for each in DIGESTS if root(each).subject == certificate.issuer]
    certificate.verify_directly_issued_by(issuers[0])


def test_a_file_name_that_is_not_listed_is_no_root():
    with pytest.raises(EvidenceMalformed):
        root("../types.py")
