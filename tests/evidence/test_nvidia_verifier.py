"""NVIDIA devices under a pretend vendor: RIMs that match and do not, revocation, and signed XML that lies."""

from __future__ import annotations

from base64 import b64encode

import pytest
from doubles.nvidia_device import NOW, PretendNvidia, certify, rim_xml, sign_rim
from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.nvidia_spdm import SpdmReport
from strongroom.evidence.types import Checklist, Endorsements, Evidence

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def nvidia() -> PretendNvidia:
    return PretendNvidia()


@pytest.fixture(scope="module")
def rims(nvidia) -> dict[str, bytes]:
    return {"driver_rim": nvidia.rim("driver"), "vbios_rim": nvidia.rim("vbios")}


def judged(nvidia, items=None, table=None, report=None, chain=None, alone=False):
    verifier = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    checks = Checklist()
    policy = verifier.policy(Fields(table or {}, where="nvidia"))
    endorsements = Endorsements(items or {})
    if alone:
        verifier.verify_endorsements(endorsements, NOW, policy, checks)
        return None, {check.name: str(check.word) for check in checks.failed}
    report = nvidia.report(NONCE) if report is None else report
    device = {"arch": "HOPPER", "uuid": "x", "evidence": b64(report), "certificate": b64(chain or nvidia.chain)}
    claims = verifier.verify(Evidence("nvidia", {"device_evidence_list": [device]}), endorsements, NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {check.name: str(check.word) for check in checks.failed}


def test_a_gpu_that_matches_both_rims_is_accepted(nvidia, rims):
    claims, failed = judged(nvidia, rims)
    assert failed == {}
    assert (claims.device_class, claims["driver_version"], claims["vbios_version"]) == (
        "gpu", "575.51.02", "96.00.9F.00.01",
    )  # fmt: skip
    assert claims.report_data == NONCE


@pytest.mark.parametrize("missing", ["driver", "vbios"])
def test_a_gpu_needs_both_rims_unless_the_policy_says_otherwise(nvidia, rims, missing):
    items = {role: octets for role, octets in rims.items() if role != f"{missing}_rim"}
    assert judged(nvidia, items)[1] == {f"nvidia.{missing}-rim.present": "collateral-missing"}
    left = ["driver", "vbios"]
    left.remove(missing)
    assert judged(nvidia, items, {"required_rims": left})[1] == {}
    assert judged(nvidia, {}, {"required_rims": []})[1] == {}


def test_a_switch_needs_its_one_rim():
    switch = PretendNvidia(product="LS_10", vbios="96.10.55.00.01")
    claims, failed = judged(switch, {"vbios_rim": switch.rim("vbios")})
    assert (claims.device_class, failed) == ("switch", {})
    assert judged(switch)[1] == {"nvidia.vbios-rim.present": "collateral-missing"}


def test_a_gpu_cannot_pass_for_a_switch_by_its_senders_word(nvidia, rims):
    """What kind of device it is stands in the certificate; the ``arch`` member is not asked."""
    device = {"arch": "LS10", "uuid": "", "evidence": b64(nvidia.report(NONCE)), "certificate": b64(nvidia.chain)}
    verifier = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    checks, policy = Checklist(), verifier.policy(Fields({}, where="nvidia"))
    items = Endorsements({"vbios_rim": rims["vbios_rim"]})
    claims = verifier.verify(Evidence("nvidia", {"device_evidence_list": [device]}), items, NOW, policy, checks)
    assert claims.device_class == "gpu"
    assert [check.name for check in checks.failed] == ["nvidia.driver-rim.present"]


def test_a_measurement_that_no_alternative_names_is_a_refusal(nvidia, rims):
    wrong = nvidia.rim("vbios", references={2: [b"\1" * 48], 4: [nvidia.values[5]]})
    assert judged(nvidia, rims | {"vbios_rim": wrong})[1] == {"nvidia.vbios-rim.values": "rim"}


def test_an_active_value_that_the_device_does_not_measure_is_a_refusal():
    nvidia = PretendNvidia()
    items = {"driver_rim": nvidia.rim("driver"), "vbios_rim": nvidia.rim("vbios")}
    del nvidia.values[63]
    assert judged(nvidia, items)[1] == {"nvidia.vbios-rim.values": "rim"}


def test_a_rim_without_active_values_matches_nothing(nvidia, rims):
    empty = nvidia.rim("vbios", references={})
    assert judged(nvidia, rims | {"vbios_rim": empty})[1] == {"nvidia.vbios-rim.values": "rim"}


def test_a_genuine_rim_in_the_wrong_role_is_refused(nvidia, rims):
    """Else a driver RIM given twice would leave the VBIOS unmeasured."""
    failed = judged(nvidia, rims | {"vbios_rim": rims["driver_rim"]})[1]
    assert failed == {"nvidia.vbios-rim.version": "rim"}


def test_a_rim_of_another_chip_with_the_same_version_is_refused(nvidia, rims):
    other = PretendNvidia(product="GB100", root=nvidia.root, rim_root=nvidia.rim_root)
    assert judged(nvidia, rims | {"driver_rim": other.rim("driver")})[1] == {"nvidia.driver-rim.version": "rim"}


def test_the_measurement_of_a_disabled_decoder_is_left_out_only_where_the_policy_says_so():
    device = PretendNvidia(nvdec0=b"\x55")
    driver = {33: [device.values[34]], 34: [b"\2" * 48]}
    items = {"driver_rim": device.rim("driver", references=driver), "vbios_rim": device.rim("vbios")}
    assert judged(device, items)[1] == {"nvidia.driver-rim.values": "rim"}
    assert judged(device, items, {"skip_disabled_nvdec": True})[1] == {}
    device.nvdec0 = b"\xaa"
    assert judged(device, items, {"skip_disabled_nvdec": True})[1] == {"nvidia.driver-rim.values": "rim"}


def test_of_several_rims_the_one_for_the_devices_version_is_taken(nvidia, rims):
    older = nvidia.rim("driver", version="550.54.14", references={1: [b"\2" * 48]})
    items = {"vbios_rim": rims["vbios_rim"], "driver_rim:550.54.14": older, "driver_rim:new": rims["driver_rim"]}
    assert judged(nvidia, items)[1] == {}
    items = {"vbios_rim": rims["vbios_rim"], "driver_rim:1": older, "driver_rim:2": older}
    assert judged(nvidia, items)[1] == {"nvidia.driver-rim.present": "collateral-missing"}


def test_the_firmware_id_has_to_be_the_certified_one(nvidia, rims):
    assert judged(nvidia, rims, report=nvidia.report(NONCE, firmware_id=b"\2" * 48))[1] == {"nvidia.fwid": "identity"}


def test_a_report_by_another_key_or_chain_is_refused(nvidia, rims):
    stranger = PretendNvidia()
    assert judged(nvidia, rims, report=stranger.report(NONCE))[1] == {"nvidia.signature": "signature"}
    assert judged(nvidia, rims, report=stranger.report(NONCE), chain=stranger.chain)[1] == {
        "nvidia.device.chain": "chain"
    }


def test_policy_lists_decide(nvidia, rims):
    assert judged(nvidia, rims, {"driver_versions": ["575.51.02"], "products": ["GH100"]})[1] == {}
    assert judged(nvidia, rims, {"driver_versions": []})[1] == {"nvidia.driver-version": "measurement"}
    assert judged(nvidia, rims, {"vbios_versions": ["97"]})[1] == {"nvidia.vbios-version": "measurement"}
    assert judged(nvidia, rims, {"products": ["GB100"]})[1] == {"nvidia.product": "identity"}
    assert judged(nvidia, rims, {"device_ids": ["x"]})[1] == {"nvidia.device-id": "identity"}
    assert judged(nvidia, rims, {"min_driver_version": "575.51.02"})[1] == {}
    assert judged(nvidia, rims, {"min_driver_version": "575.100"})[1] == {"nvidia.min-driver-version": "tcb"}
    for table in ({"required_rims": ["gsp"]}, {"min_driver_version": "r575"}, {"rims": []}):
        with pytest.raises(MalformedInput):
            judged(nvidia, rims, table)


def test_devices_of_one_list_are_taken_apart_and_told_apart(nvidia):
    other = PretendNvidia(root=nvidia.root)
    listed = [
        {"arch": "HOPPER", "uuid": "", "evidence": b64(each.report(NONCE)), "certificate": b64(each.chain)}
        for each in (nvidia, other, nvidia)
    ]
    verifier = NvidiaVerifier(device_root=nvidia.root.certificate)
    policy = verifier.policy(Fields({"required_rims": []}, where="nvidia"))
    whole = Evidence("nvidia", {"device_evidence_list": listed})
    with pytest.raises(EvidenceMalformed, match="3 devices"):
        verifier.verify(whole, Endorsements({}), NOW, policy, Checklist())
    ids = [
        verifier.verify(each, Endorsements({}), NOW, policy, Checklist()).device_id for each in verifier.split(whole)
    ]
    assert ids[0] == ids[2] != ids[1]


# -- revocation -------------------------------------------------------------------

REQUIRED = {"require_revocation_status": True}


def test_required_status_is_given_by_ocsp_answers(nvidia, rims):
    assert judged(nvidia, rims | nvidia.answers(), REQUIRED)[1] == {}


@pytest.mark.parametrize(
    ("left_out", "failed"),
    [
        ("ocsp:identity", "nvidia.device.revoked"),
        ("ocsp:rim-ca", "nvidia.driver-rim.revoked"),
        ("ocsp:rim-signer", "nvidia.vbios-rim.revoked"),
    ],
)
def test_a_missing_answer_is_a_refusal_where_status_is_required(nvidia, rims, left_out, failed):
    items = {role: octets for role, octets in (rims | nvidia.answers()).items() if role != left_out}
    found = judged(nvidia, items, REQUIRED)[1]
    assert set(found.values()) == {"revocation"} and failed in found
    assert judged(nvidia, items)[1] == {}


def test_a_crl_is_an_answer_too(nvidia, rims):
    items = rims | {
        "crl:device": nvidia.crl(nvidia.root), "crl:rim-root": nvidia.crl(nvidia.rim_root),
        "crl:rim-ca": nvidia.crl(nvidia.rim_ca),
    }  # fmt: skip
    assert judged(nvidia, items, REQUIRED)[1] == {}
    items["crl:device"] = nvidia.crl(nvidia.root, nvidia.identity)
    assert judged(nvidia, items)[1] == {"nvidia.device.revoked": "revocation"}


def test_a_revoked_device_or_signer_is_refused_even_where_status_is_not_required(nvidia, rims):
    answer = {"ocsp:a": nvidia.ocsp(nvidia.identity, nvidia.root, revoked=True)}
    assert judged(nvidia, rims | answer)[1] == {"nvidia.device.revoked": "revocation"}
    answer = {"ocsp:a": nvidia.ocsp(nvidia.rim_signer, nvidia.rim_ca, revoked=True)}
    assert set(judged(nvidia, rims | answer)[1].values()) == {"revocation"}


@pytest.mark.parametrize("end", [NOW.replace(year=2025), None], ids=["stale", "without nextUpdate"])
def test_an_answer_that_is_not_fresh_is_no_answer(nvidia, rims, end):
    from datetime import timedelta

    end = NOW - timedelta(hours=1) if end else None
    items = rims | nvidia.answers() | {"ocsp:identity": nvidia.ocsp(nvidia.identity, nvidia.root, end=end)}
    found = judged(nvidia, items, REQUIRED)[1]
    assert found == {"nvidia.device.ocsp-validity": "validity-period", "nvidia.device.revoked": "revocation"}


def test_an_answer_may_come_from_an_appointed_responder_and_from_no_other(nvidia, rims):
    good = nvidia.ocsp(nvidia.identity, nvidia.root, signer=nvidia.responder(nvidia.root))
    assert judged(nvidia, rims | nvidia.answers() | {"ocsp:identity": good}, REQUIRED)[1] == {}
    for signer in (nvidia.responder(nvidia.root, appointed=False), certify("OCSP responder"), nvidia.rim_signer):
        bad = nvidia.ocsp(nvidia.identity, nvidia.root, signer=signer)
        found = judged(nvidia, rims | nvidia.answers() | {"ocsp:identity": bad}, REQUIRED)[1]
        assert found == {"nvidia.device.ocsp": "revocation", "nvidia.device.revoked": "revocation"}


def test_an_answer_about_another_certificate_does_not_count(nvidia, rims):
    items = rims | nvidia.answers() | {"ocsp:identity": nvidia.ocsp(nvidia.boot_rom, nvidia.identity)}
    assert judged(nvidia, items, REQUIRED)[1] == {"nvidia.device.revoked": "revocation"}


# -- signed XML ---------------------------------------------------------------------


def rim_judged(nvidia, octets):
    return judged(nvidia, {"driver_rim": octets}, alone=True)[1]


def test_rims_alone_are_judged_without_a_device(nvidia, rims):
    assert rim_judged(nvidia, rims["driver_rim"]) == {}
    assert judged(nvidia, {}, alone=True)[1] == {"nvidia.rim-present": "collateral-missing"}


def element_of(octets: bytes) -> bytes:
    return octets[octets.index(b"<ds:Signature ") : octets.index(b"</ds:Signature>") + len(b"</ds:Signature>")]


def test_a_signature_moved_around_or_doubled_does_not_count(nvidia, rims):
    octets = rims["driver_rim"]
    element = element_of(octets)
    bare = octets.replace(element, b"")
    inner = bare.replace(b"<n:Payload>", b"<n:Payload>" + element)
    for changed in (bare, octets.replace(element, element * 2), inner):
        assert rim_judged(nvidia, changed) == {"nvidia.driver-rim.enveloped": "signature"}
    wrapped = b'<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd">' + bare + element
    assert rim_judged(nvidia, wrapped + b"</SoftwareIdentity>")["nvidia.driver-rim.digest"] == "signature"


def test_a_reference_to_a_part_of_the_document_does_not_count(nvidia):
    unsigned = rim_xml("GH100", nvidia.driver, {1: [nvidia.values[2]]})
    octets = sign_rim(unsigned, nvidia.rim_signer, [nvidia.rim_ca, nvidia.rim_root], uri="#payload")
    assert rim_judged(nvidia, octets) == {"nvidia.driver-rim.enveloped": "signature"}


def test_a_value_added_after_signing_is_found(nvidia, rims):
    octets = rims["driver_rim"].replace(b'active="False"', b'active="True"', 1)
    assert rim_judged(nvidia, octets) == {"nvidia.driver-rim.digest": "signature"}


def test_a_digest_that_nobody_signed_is_found(nvidia):
    """A forger who makes the digest right cannot make its signature right."""
    forger = certify("HCC RIM L4 Signer")
    octets = sign_rim(rim_xml("GH100", nvidia.driver, {}), forger, [nvidia.rim_ca, nvidia.rim_root])
    assert rim_judged(nvidia, octets)["nvidia.driver-rim.chain"] == "chain"
    genuine = b64encode(nvidia.rim_signer.certificate.public_bytes(_der()))
    swapped = octets.replace(b64encode(forger.certificate.public_bytes(_der())), genuine)
    assert rim_judged(nvidia, swapped) == {"nvidia.driver-rim.signature": "signature"}


def _der():
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.DER


def test_weaker_algorithms_are_not_accepted(nvidia, rims):
    octets = rims["driver_rim"].replace(b"xmldsig-more#sha384", b"xmldsig#sha1", 1)
    assert rim_judged(nvidia, octets)["nvidia.driver-rim.algorithms"] == "algorithm"


@pytest.mark.parametrize(
    "change",
    [
        lambda octets: b"<!DOCTYPE x>" + octets,
        lambda octets: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + octets,
        lambda octets: octets.replace(b"<n:Payload>", b"<!-- x --><n:Payload>"),
        lambda octets: octets.replace(b"<n:Payload>", b"<?x y?><n:Payload>"),
        lambda octets: octets + b"<!-- x -->",
        lambda octets: octets.replace(b"<n:Payload>", b'<n:Payload xml:base="x">'),
        lambda octets: octets.replace(b"<n:Payload>", b'<n:Payload xmlns:r="relative">'),
        lambda octets: octets[:-1],
        lambda octets: b"",
        lambda octets: b"\xff\xfe" + octets,
        lambda octets: octets.replace(b"<ds:SignatureValue>", b"<ds:SignatureValue>*"),
        lambda octets: octets + b"\n" * (1 << 20),
    ],
)
def test_xml_of_any_other_kind_is_malformed(nvidia, rims, change):
    with pytest.raises(EvidenceMalformed):
        rim_judged(nvidia, change(rims["driver_rim"]))


def test_an_entity_bomb_is_refused_without_being_expanded(nvidia, rims):
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">' for n in range(12))
    bomb = f"<!DOCTYPE x [{entities}]><x>&e11;</x>".encode()
    with pytest.raises(EvidenceMalformed):
        rim_judged(nvidia, bomb)


# -- the report ------------------------------------------------------------------------


def test_reports_are_written_back_as_they_were_read(nvidia):
    octets = nvidia.report(NONCE) + b"\1"
    assert SpdmReport.parse(octets).serialise() == octets


def test_bytes_after_the_response_are_refused_unless_they_are_allowed(nvidia, rims):
    octets = nvidia.report(NONCE) + b"\0"
    with pytest.raises(EvidenceMalformed, match="1 bytes after"):
        judged(nvidia, rims, report=octets)
    assert judged(nvidia, rims, {"allow_trailing_bytes": True}, report=octets)[1] == {}


@pytest.mark.parametrize(
    ("at", "octet"), [(0, 0x12), (1, 0xE1), (37, 0x10), (38, 0x61), (41, 63), (42, 1), (45, 0), (46, 2), (47, 9)]
)
def test_a_report_with_wrong_framing_is_malformed(nvidia, rims, at, octet):
    octets = bytearray(nvidia.report(NONCE))
    octets[at] = octet
    with pytest.raises(EvidenceMalformed):
        judged(nvidia, rims, report=bytes(octets))
