"""TDX quotes under a pretend Intel, and event logs: each failure by its own name."""

from __future__ import annotations

import hashlib
import json

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.dcap_platform import NOW, PretendIntel, enclave, isv_level, level, trust_domain
from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.dcap_quote import Quote
from strongroom.evidence.tdx import TdxVerifier, appraise_td, verify_td_quote
from strongroom.evidence.tdx_event_log import parse_log, replay
from strongroom.evidence.types import Checklist, Endorsements, Evidence, Provenance

SERVICE_TD = "5d" * 48


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


def judged(intel, body=None, collateral=None, table=None, log=None, quote=None):
    verifier, checks = TdxVerifier(intel_root=intel.root.certificate), Checklist()
    policy = verifier.policy(Fields(table or {}, where="tdx"))
    octets = quote or intel.quote(body or trust_domain())
    evidence = Evidence("tdx", {"quote": b64(octets), "cc_eventlog": None if log is None else b64(log)})
    endorsements = Endorsements({"collateral": collateral or intel.collateral(tdx=True)})
    claims = verifier.verify(evidence, endorsements, NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {check.name: str(check.word) for check in checks.failed}


@pytest.mark.parametrize(
    "body",
    [trust_domain(), trust_domain(tee_tcb_svn2=bytes(16), mr_servicetd=bytes(48))],
    ids=["TDX 1.0", "TDX 1.5"],
)
def test_an_up_to_date_td_is_accepted(intel, body):
    claims, failed = judged(intel, body)
    assert failed == {}
    assert (claims["tcb_status"], claims["module_status"], claims["qe_status"]) == ("UpToDate",) * 3


def test_a_version_5_quote_may_hold_a_tdx_1_0_body(intel):
    assert judged(intel, quote=intel.quote(trust_domain(), version=5))[1] == {}


@pytest.mark.parametrize(
    ("attributes", "failed"),
    [
        (1 << 28 | 1, {"tdx.debug": "debug"}),
        (1 << 28 | 1 << 29, {"tdx.migratable": "migration"}),
        (0, {"tdx.sept-ve-disable": "policy-bits"}),
        (1 << 28 | 1 << 30 | 1 << 63, {}),
    ],
)
def test_attributes_decide_by_name(intel, attributes, failed):
    assert judged(intel, trust_domain(td_attributes=attributes.to_bytes(8, "little")))[1] == failed


def test_what_a_policy_allows_is_accepted(intel):
    body = trust_domain(td_attributes=(1 << 29 | 1).to_bytes(8, "little"))
    assert judged(intel, body, table={"allow_debug": True, "allow_migration": True, "profile": "azure"})[1] == {}


def test_a_module_that_is_not_intels_production_one_is_refused(intel):
    failed = judged(intel, trust_domain(mr_signer_seam=b"\1" * 48))[1]
    assert failed == {"tdx.mr-signer-seam": "measurement", "tdx.tcb": "tcb"}
    failed = judged(intel, trust_domain(seam_attributes=b"\1" + bytes(7)))[1]
    assert failed == {"tdx.seam-attributes": "policy-bits", "tdx.tcb": "tcb"}


def test_a_bound_service_td_has_to_be_allowed_by_value(intel):
    body = trust_domain(tee_tcb_svn2=bytes(16), mr_servicetd=bytes.fromhex(SERVICE_TD))
    assert judged(intel, body)[1] == {"tdx.mr-servicetd": "migration"}
    assert judged(intel, body, table={"allow_migration": True})[1] == {"tdx.mr-servicetd": "migration"}
    assert judged(intel, body, table={"allowed_mr_servicetd": [SERVICE_TD]})[1] == {}
    with pytest.raises(MalformedInput):
        judged(intel, body, table={"allowed_mr_servicetd": ["5d"]})


@pytest.mark.parametrize(
    ("svn", "module", "overall"),
    [
        (b"\x05\x01", "UpToDate", "UpToDate"),
        (b"\x02\x01", "OutOfDate", "OutOfDate"),
        (b"\x01\x01", "NotSupported", "NotSupported"),  # below every level of the module
        (b"\x05\x02", "NotSupported", "NotSupported"),  # a module version that Intel does not name
        (b"\x05\x00", "", "NotSupported"),  # no version: components 0 and 1 are judged with the others
    ],
)
def test_the_modules_version_picks_the_identity_that_judges_it(intel, svn, module, overall):
    claims, _ = judged(intel, trust_domain(tee_tcb_svn=svn + b"\x05" * 14))
    assert (claims["module_status"], claims["tcb_status"]) == (module, overall)


def test_a_module_without_a_version_is_judged_by_its_components(intel):
    info = intel.tcb_info(level("UpToDate", tdx_svn=0), tdx=True)
    claims, failed = judged(
        intel, trust_domain(tee_tcb_svn=b"\x05\x00" + b"\x05" * 14), intel.collateral(tcb_info=info, tdx=True)
    )
    assert (claims["tcb_status"], claims["module_status"], failed) == ("UpToDate", "", {})


@pytest.mark.parametrize("platform", ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "OutOfDate"])
@pytest.mark.parametrize("qe", ["UpToDate", "OutOfDate"])
@pytest.mark.parametrize("svn", [5, 2])
def test_the_overall_status_is_dcap_qvls(intel, platform, qe, svn):
    body = trust_domain(tee_tcb_svn=bytes((svn, 1)) + b"\x05" * 14)
    info = intel.tcb_info(level(platform, tdx_svn=5, advisoryIDs=["INTEL-SA-00002"]), tdx=True)
    identity = intel.qe_identity(tdx=True, tcbLevels=[isv_level(qe, 8)])
    collateral, quote = intel.collateral(tcb_info=info, qe_identity=identity), intel.quote(body)
    claims, _ = judged(intel, body, collateral, quote=quote)
    parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    root = intel.root.certificate.public_bytes(Encoding.DER)
    theirs = dcap_qvl.verify_with_root_ca(quote, parsed, root, int(NOW.timestamp()))
    assert (claims["tcb_status"], claims["advisories"]) == (theirs.status, sorted(theirs.advisory_ids))


@pytest.mark.parametrize(
    ("table", "failed"),
    [
        ({"measurements": ["7d" * 48], "rtmr0": ["00" * 48], "mr_config_ids": ["00" * 48]}, {}),
        ({"measurements": ["7e" * 48]}, {"tdx.mr-td": "measurement"}),
        ({"measurements": []}, {"tdx.mr-td": "measurement"}),
        ({"mr_seams": ["00" * 48]}, {"tdx.mr-seam": "measurement"}),
        ({"rtmr3": ["01" * 48]}, {"tdx.rtmr3": "measurement"}),
        ({"require_event_log": True}, {"tdx.event-log": "evidence-missing"}),
    ],
)
def test_reference_values_decide(intel, table, failed):
    assert judged(intel, table=table)[1] == failed


def test_a_quote_in_another_envelope_is_verified_by_the_same_rules(intel):
    checks = Checklist()
    claims = verify_td_quote(
        intel.quote(trust_domain(td_attributes=bytes(8))), intel.collateral(tdx=True), now=NOW, checks=checks,
        intel_root=intel.root.certificate, name="az-tdx-vtpm.td",
    )  # fmt: skip
    policy = TdxVerifier().policy(Fields({}, where="tdx"))
    appraise_td(claims, policy, checks, name="az-tdx-vtpm.td")
    assert [check.name for check in checks.failed] == ["az-tdx-vtpm.td.sept-ve-disable"]


def test_an_enclaves_quote_is_not_a_tds(intel):
    with pytest.raises(EvidenceMalformed, match="enclave"):
        judged(intel, quote=intel.quote(enclave()))


def test_quotes_are_written_back_as_they_were_read(intel):
    for body in (trust_domain(), trust_domain(tee_tcb_svn2=bytes(16), mr_servicetd=bytes(48)), enclave()):
        octets = intel.quote(body) + bytes(9)
        assert Quote.parse(octets).serialise() == octets
        assert Quote.parse(octets).body == body


# -- event logs -----------------------------------------------------------------


def runtime_event(name: str, payload: bytes, register: int = 3) -> dict:
    kind = 0x08000001
    digest = hashlib.sha384(kind.to_bytes(4, "little") + b":" + name.encode() + b":" + payload).hexdigest()
    return {"imr": register, "event_type": kind, "digest": digest, "event": name, "event_payload": payload.hex()}


EVENTS = [
    {"imr": 0, "event_type": 1, "digest": "a1" * 48, "event": "", "event_payload": ""},
    {"imr": 1, "event_type": 4, "digest": "b2" * 48, "event": "", "event_payload": "00000000"},
    runtime_event("app-id", b"strongroom"),
    runtime_event("twice", b"1"),
    runtime_event("twice", b"2"),
]


def logged(events) -> tuple[bytes, bytes, bytes, bytes]:
    return replay(parse_log(json.dumps(events).encode()))


def test_a_log_that_replays_is_accepted_and_its_proved_values_become_claims(intel):
    events = [*EVENTS, {**runtime_event("forged", b"x"), "event_payload": "79"}]
    claims, failed = judged(
        intel, trust_domain(rtmr=logged(events)), log=json.dumps(events).encode(), table={"require_event_log": True}
    )
    assert failed == {}
    assert bytes.fromhex(claims["event.app-id"]) == b"strongroom"
    assert claims.values["event.app-id"].provenance is Provenance.EVENT_LOG
    # Neither a value that its digest does not cover nor one of two of the same name is believed.
    assert {name for name in claims.values if name.startswith("event.")} == {"event.app-id"}


def test_a_name_that_no_digest_can_cover_is_not_believed(intel):
    events = [*EVENTS, {**runtime_event("", b""), "event": "\ud800"}, {**EVENTS[0], "event": "\ud800"}]
    claims, failed = judged(intel, trust_domain(rtmr=logged(events)), log=json.dumps(events).encode())
    assert failed == {}
    assert {name for name in claims.values if name.startswith("event.")} == {"event.app-id"}


@pytest.mark.parametrize("note", [{"event_payload": None}, {"event_payload": "not hex"}, {"event": None}, {"event": 1}])
def test_what_stands_beside_a_digest_and_is_not_believed_may_be_anything(intel, note):
    events = [{**EVENTS[0], **note}, {**runtime_event("odd", b"1"), **note}, *EVENTS[1:]]
    claims, failed = judged(intel, trust_domain(rtmr=logged(events)), log=json.dumps(events).encode())
    assert failed == {}
    assert {name for name in claims.values if name.startswith("event.")} == {"event.app-id"}


def test_a_log_that_does_not_replay_is_refused_by_register(intel):
    body = trust_domain(rtmr=logged(EVENTS))
    log = json.dumps(EVENTS[1:]).encode()
    claims, failed = judged(intel, body, log=log)
    assert failed == {"tdx.rtmr0-replay": "event-log"}
    assert "event.app-id" not in claims.values


def ccel(events, *, algorithm: int = 0x000C) -> bytes:
    """A TCG crypto-agile log: register 1 to 4 is RTMR 0 to 3."""

    def u32(value: int) -> bytes:
        return value.to_bytes(4, "little")

    spec = b"Spec ID Event03\0" + u32(0) + b"\0\2\0\2" + u32(1) + algorithm.to_bytes(2, "little") + b"\x30\0\0"
    log = u32(0) + u32(3) + bytes(20) + u32(len(spec)) + spec
    for event in events:
        payload = bytes.fromhex(event["event_payload"])
        log += u32(event["imr"] + 1) + u32(event["event_type"]) + u32(1) + algorithm.to_bytes(2, "little")
        log += bytes.fromhex(event["digest"]) + u32(len(payload)) + payload
    return log


@pytest.mark.parametrize("padding", [b"", b"\xff" * 4096, bytes(17)], ids=["none", "erased flash", "zeros"])
def test_the_binary_ccel_log_replays_as_the_json_one_does(intel, padding):
    body = trust_domain(rtmr=logged(EVENTS))
    assert judged(intel, body, log=ccel(EVENTS) + padding)[1] == {}


@pytest.mark.parametrize(
    "log",
    [
        b"", b"{}", b"[1]", b"[{}]", b'[{"imr":4,"event_type":1,"digest":"' + b"00" * 48 + b'"}]',
        b'[{"imr":0,"event_type":1,"digest":"00"}]', b'[{"imr":0,"event_type":1}]', ccel(EVENTS)[:-1],
        ccel(EVENTS, algorithm=0x000B),
        ccel([{**EVENTS[0], "imr": 7}]), ccel(EVENTS) + b"\1\0",
    ],
)  # fmt: skip
def test_a_log_that_cannot_be_read_is_malformed(intel, log):
    with pytest.raises(EvidenceMalformed):
        judged(intel, log=log)
