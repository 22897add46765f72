"""CRLs: whose they are, whether they are fresh, and what is looked up in them."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from evidence.pki import DAY, NOW, Authority, named
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.errors import EvidenceMalformed
from strongroom.evidence.crl import check_crl, parse_crl
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.types import Checklist, Word

LISTED = x509.CRLDistributionPoints(
    [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.example")], None, None, None)]
)
ISSUER = x509.CertificateIssuer([x509.DirectoryName(named("somebody else"))])
ROOT = Authority.root()
CA = ROOT.issue("CA", ca=True, usage=("key_cert_sign", "crl_sign"), extensions=((LISTED, False),))
LEAF = CA.issue("Leaf", ca=False, usage=("digital_signature",), extensions=((LISTED, False),))
PATH = (LEAF.certificate, CA.certificate, ROOT.certificate)


def read(crl):
    return parse_crl(crl.public_bytes(Encoding.DER), what="crl")


def looked_up(crls, *, required=True, now=NOW):
    checks = Checklist()
    good = check_status(PATH, Lists(tuple(map(read, crls))), now=now, checks=checks, name="test", required=required)
    assert good == (not checks.failed)
    return {check.word for check in checks.failed}


def test_a_chain_with_fresh_lists_of_every_issuer_passes():
    assert looked_up([CA.crl(), ROOT.crl()]) == set()


def test_a_missing_list_is_a_refusal_where_it_is_required():
    assert looked_up([CA.crl()]) == {Word.REVOCATION}
    assert looked_up([CA.crl()], required=False) == set()
    assert looked_up([]) == {Word.REVOCATION}


def test_a_revoked_certificate_is_refused_anywhere_in_the_chain():
    assert looked_up([CA.crl(LEAF.certificate), ROOT.crl()]) == {Word.REVOCATION}
    assert looked_up([CA.crl(), ROOT.crl(CA.certificate)]) == {Word.REVOCATION}


def test_a_stale_or_future_list_is_a_matter_of_dates():
    stale = CA.crl(begin=NOW - 3 * DAY, end=NOW - DAY)
    future = CA.crl(begin=NOW + DAY, end=NOW + 2 * DAY)
    for crl in (stale, future):
        assert looked_up([crl, ROOT.crl()], required=False) == {Word.VALIDITY_PERIOD}
        assert looked_up([crl, ROOT.crl()]) == {Word.VALIDITY_PERIOD, Word.REVOCATION}


def test_a_list_that_another_signed_in_the_issuers_name_is_refused():
    impostor = Authority.root("CA")
    assert looked_up([impostor.crl(), ROOT.crl()]) == {Word.REVOCATION}


def test_a_list_by_an_issuer_that_may_not_sign_lists_is_refused():
    checks = Checklist()
    mute = ROOT.issue("Mute", ca=True, usage=("key_cert_sign",))
    assert not check_crl(read(mute.crl()), issuer=mute.certificate, now=NOW, checks=checks, name="test")
    assert [check.word for check in checks.failed] == [Word.REVOCATION]


def test_partial_and_delta_lists_are_refused():
    point = x509.IssuingDistributionPoint(
        full_name=None, relative_name=None, only_contains_user_certs=True, only_contains_ca_certs=False,
        only_some_reasons=None, indirect_crl=False, only_contains_attribute_certs=False,
    )  # fmt: skip
    for extensions in ((point,), (x509.DeltaCRLIndicator(1),)):
        assert looked_up([CA.crl(extensions=extensions), ROOT.crl()]) == {Word.REVOCATION}


def test_an_entry_with_a_critical_extension_that_is_not_known_makes_a_list_partial_and_a_reason_does_not():
    for extension, complete in ((x509.CRLReason(x509.ReasonFlags.key_compromise), True), (ISSUER, False)):
        entry = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(NOW - DAY)
        builder = x509.CertificateRevocationListBuilder().issuer_name(named("CA")).last_update(NOW - DAY)
        builder = builder.next_update(NOW + DAY)
        builder = builder.add_revoked_certificate(entry.add_extension(extension, critical=True).build())
        assert read(builder.sign(CA.key, hashes.SHA384())).complete == complete


def test_a_list_that_held_before_is_judged_by_the_clock_and_its_issuer_again():
    crl = CA.crl()
    assert looked_up([crl, ROOT.crl()]) == set()
    assert looked_up([crl, ROOT.crl()], now=NOW + 2 * DAY) == {Word.VALIDITY_PERIOD, Word.REVOCATION}
    checks, impostor = Checklist(), Authority.root("CA")
    assert not check_crl(read(crl), issuer=impostor.certificate, now=NOW, checks=checks, name="test")
    assert [check.word for check in checks.failed] == [Word.REVOCATION]


def test_a_list_of_an_unknown_version_is_refused():
    octets = CA.crl().public_bytes(Encoding.DER)
    version = octets.index(b"\x02\x01\x01")  # INTEGER 1 is version 2; an artifact of the fuzzer had 59
    with pytest.raises(EvidenceMalformed):
        parse_crl(octets[: version + 2] + b"\x3b" + octets[version + 3 :], what="crl")


def test_an_extension_that_cannot_be_decoded_raises_our_error_only():
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.18"), bytes.fromhex("3004a3020500"))
    with pytest.raises(EvidenceMalformed):
        read(CA.crl(extensions=(odd,)))


def test_a_list_is_read_from_pem_and_der_alike():
    crl = CA.crl(LEAF.certificate)
    for encoding in (Encoding.PEM, Encoding.DER):
        assert parse_crl(crl.public_bytes(encoding), what="crl").issuer == named("CA")


@settings(deadline=None)  # a busy machine is no finding
@given(st.binary(max_size=200))
def test_bytes_that_are_no_list_raise_our_error_only(octets):
    with pytest.raises(EvidenceMalformed):
        parse_crl(octets, what="noise")
