"""SGX quotes under a pretend Intel: the paths that no public capture walks, each failure by its own name."""

from __future__ import annotations

from datetime import timedelta

import dcap_qvl
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from doubles.dcap_platform import NOW, PretendIntel, certify, enclave, isv_level, level
from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.types import Checklist, Endorsements, Evidence

STATUSES = (
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
    "OutOfDateConfigurationNeeded", "Revoked",
)  # fmt: skip


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


def judged(intel, quote=None, collateral=None, table=None, now=NOW):
    """The claims, and the name and word of every check that failed."""
    verifier, checks = SgxVerifier(intel_root=intel.root.certificate), Checklist()
    policy = verifier.policy(Fields(table or {}, where="sgx"))
    body = {"quote": b64(quote or intel.quote(enclave()))}
    items = {"collateral": intel.collateral() if collateral is None else collateral} if collateral != b"" else {}
    claims = verifier.verify(Evidence("sgx", body), Endorsements(items), now, policy, checks)
    verifier.appraise(claims, policy, checks)
    return claims, {check.name: str(check.word) for check in checks.failed}


def test_an_up_to_date_enclave_is_accepted_and_its_claims_are_read(intel):
    claims, failed = judged(intel)
    assert failed == {}
    assert (claims["tcb_status"], claims["isv_prod_id"], claims["isv_svn"]) == ("UpToDate", 7, 3)
    assert claims["measurement"] == "e1" * 32
    assert claims.device_id.startswith("intel:00906ed50000:")


@pytest.mark.parametrize("version", [3, 4, 5])
def test_every_quote_version_around_an_enclave_is_read(intel, version):
    assert judged(intel, intel.quote(enclave(), version=version))[1] == {}


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_is_accepted_only_where_it_is_named_and_revoked_never(intel, status):
    collateral = intel.collateral(tcb_info=intel.tcb_info(level(status)))
    assert judged(intel, collateral=collateral)[1] == ({} if status == "UpToDate" else {"sgx.tcb": "tcb"})
    if status == "Revoked":
        with pytest.raises(MalformedInput, match="never allowed"):
            judged(intel, collateral=collateral, table={"allowed_tcb_statuses": [status]})
    else:
        assert judged(intel, collateral=collateral, table={"allowed_tcb_statuses": [status]})[1] == {}


@pytest.mark.parametrize("status", STATUSES[:-1])
@pytest.mark.parametrize("qe_status", ["UpToDate", "OutOfDate"])
def test_the_overall_status_is_dcap_qvls(intel, status, qe_status):
    quote = intel.quote(enclave())
    info = intel.tcb_info(level(status, advisoryIDs=["INTEL-SA-00002"]))
    identity = intel.qe_identity(tcbLevels=[isv_level(qe_status, 8, advisoryIDs=["INTEL-SA-00001"])])
    collateral = intel.collateral(tcb_info=info, qe_identity=identity)
    claims, _ = judged(intel, quote, collateral)
    parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    root = intel.root.certificate.public_bytes(Encoding.DER)
    theirs = dcap_qvl.verify_with_root_ca(quote, parsed, root, int(NOW.timestamp()))
    assert (claims["tcb_status"], claims["advisories"]) == (theirs.status, sorted(theirs.advisory_ids))


def test_the_first_level_that_is_reached_decides():
    old = PretendIntel(svn=4, pce_svn=10)
    levels = [level("UpToDate", svn=5), level("OutOfDate", svn=4), level("Revoked", svn=0)]
    claims, failed = judged(old, collateral=old.collateral(tcb_info=old.tcb_info(*levels)))
    assert (claims["tcb_status"], failed) == ("OutOfDate", {"sgx.tcb": "tcb"})


def test_a_platform_below_every_level_is_refused_under_every_policy():
    old = PretendIntel(pce_svn=9)
    claims, failed = judged(old, table={"allowed_tcb_statuses": [*STATUSES[:-1]]})
    assert (claims["tcb_status"], failed) == ("NotSupported", {"sgx.tcb": "tcb"})


def test_a_quoting_enclave_below_every_level_is_refused(intel):
    claims, failed = judged(intel, intel.quote(enclave(), qe={"isv_svn": 1}))
    assert (claims["qe_status"], failed) == ("NotSupported", {"sgx.tcb": "tcb"})


@pytest.mark.parametrize(
    "change",
    [{"mr_signer": b"\x99" * 32}, {"isv_prod_id": 9}, {"attributes": b"\x13" + bytes(15)}, {"misc_select": 1}],
    ids=lambda change: next(iter(change)),
)
def test_another_enclave_in_the_quoting_enclaves_place_is_refused(intel, change):
    assert judged(intel, intel.quote(enclave(), qe=change))[1] == {"sgx.qe": "identity"}


def test_collateral_of_another_family_or_kind_is_refused(intel):
    other = intel.collateral(tcb_info=intel.tcb_info(fmspc="00A067110000"))
    assert judged(intel, collateral=other)[1] == {"sgx.fmspc": "identity"}
    other = intel.collateral(tcb_info=intel.tcb_info(pceId="0001"))
    assert judged(intel, collateral=other)[1] == {"sgx.fmspc": "identity"}
    assert judged(intel, collateral=intel.collateral(tdx=True))[1] == {"sgx.collateral-kind": "identity"}


def test_a_revoked_platform_is_refused(intel):
    collateral = intel.collateral(pck_crl=intel.crl(intel.pck_ca, intel.pck))
    assert judged(intel, collateral=collateral)[1] == {"sgx.pck.revoked": "revocation"}


def test_a_revoked_intermediate_or_collateral_signer_is_refused(intel):
    collateral = intel.collateral(root_ca_crl=intel.crl(intel.root, intel.pck_ca))
    assert judged(intel, collateral=collateral)[1] == {"sgx.pck.revoked": "revocation"}
    collateral = intel.collateral(root_ca_crl=intel.crl(intel.root, intel.tcb_signer))
    assert judged(intel, collateral=collateral)[1] == {"sgx.tcb-info.revoked": "revocation"}


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_a_missing_crl_is_a_refusal(intel, name):
    assert judged(intel, collateral=intel.collateral(**{name: ""}))[1] == {"sgx.crl-present": "revocation"}


def test_a_crl_of_another_ca_or_with_a_foreign_signature_is_refused(intel):
    stranger = certify("Intel SGX PCK Platform CA", ca=True)
    collateral = intel.collateral(pck_crl=intel.crl(stranger))
    assert judged(intel, collateral=collateral)[1] == {"sgx.pck-crl.crl": "signature"}
    collateral = intel.collateral(pck_crl=intel.crl(intel.root))
    assert judged(intel, collateral=collateral)[1] == {"sgx.pck-crl.crl": "revocation"}


def test_the_crl_of_the_other_pck_ca_is_refused(intel):
    processor = certify("Intel SGX PCK Processor CA", intel.root, ca=True)
    chain = (processor.pem + intel.root.pem).decode()
    collateral = intel.collateral(pck_crl=intel.crl(processor), pck_crl_issuer_chain=chain)
    assert judged(intel, collateral=collateral)[1] == {"sgx.crl-issuer.same": "revocation"}


def test_everything_has_to_be_valid_at_the_time_that_is_given(intel):
    week = timedelta(days=7)
    stale = intel.collateral(pck_crl=intel.crl(intel.pck_ca, end=NOW - week / 2, begin=NOW - week))
    assert judged(intel, collateral=stale)[1] == {"sgx.pck-crl.crl-validity": "validity-period"}
    for dates in ({"nextUpdate": "2026-05-31T23:59:59Z"}, {"issueDate": "2026-06-01T00:00:01Z"}):
        stale = intel.collateral(tcb_info=intel.tcb_info(**dates))
        assert judged(intel, collateral=stale)[1] == {"sgx.tcb-info.current": "validity-period"}
        stale = intel.collateral(qe_identity=intel.qe_identity(**dates))
        assert judged(intel, collateral=stale)[1] == {"sgx.qe-identity.current": "validity-period"}
    for second in ("2026-06-01T00:00:00Z",):  # both ends belong to the period
        assert judged(intel, collateral=intel.collateral(tcb_info=intel.tcb_info(issueDate=second)))[1] == {}
        assert judged(intel, collateral=intel.collateral(tcb_info=intel.tcb_info(nextUpdate=second)))[1] == {}


def test_collateral_signed_by_a_genuine_certificate_of_another_role_is_refused(intel):
    """A platform's own PCK key chains to Intel's root too, and must not speak for Intel."""
    collateral = intel.collateral(signer=certify("Intel SGX PCK Certificate", intel.root))
    assert judged(intel, collateral=collateral)[1] == {
        "sgx.tcb-info.role": "chain",
    }


def test_another_root_is_refused(intel):
    stranger = PretendIntel()
    _, failed = judged(intel, stranger.quote(enclave()), stranger.collateral())
    assert set(failed.values()) == {"chain", "signature"} or set(failed.values()) == {
        "chain",
        "signature",
        "revocation",
    }


def test_without_collateral_the_refusal_says_what_is_missing(intel):
    assert judged(intel, collateral=b"")[1] == {"sgx.collateral-present": "collateral-missing"}


def test_a_debug_enclave_is_refused_unless_it_is_allowed(intel):
    quote = intel.quote(enclave(attributes=b"\x07" + bytes(7) + b"\xe7" + bytes(7)))
    assert judged(intel, quote)[1] == {"sgx.debug": "debug"}
    assert judged(intel, quote, table={"allow_debug": True})[1] == {}


@pytest.mark.parametrize(
    ("table", "failed"),
    [
        ({"measurements": ["e1" * 32]}, {}),
        ({"measurements": ["e2" * 32]}, {"sgx.mr-enclave": "measurement"}),
        ({"measurements": []}, {"sgx.mr-enclave": "measurement"}),
        ({"mr_signers": ["51" * 32], "isv_prod_ids": [7], "min_isv_svn": 3}, {}),
        ({"mr_signers": ["52" * 32]}, {"sgx.mr-signer": "measurement"}),
        ({"mr_signers": ["51" * 32], "isv_prod_ids": [8]}, {"sgx.isv-prod-id": "measurement"}),
        ({"mr_signers": ["51" * 32], "min_isv_svn": 4}, {"sgx.isv-svn": "measurement"}),
        ({"isv_prod_ids": []}, {"sgx.isv-prod-id": "measurement"}),
        ({"min_tcb_evaluation_data_number": 17}, {}),
        ({"min_tcb_evaluation_data_number": 18}, {"sgx.tcb-evaluation": "tcb"}),
        ({"accepted_advisories": []}, {}),
    ],
)
def test_reference_values_decide(intel, table, failed):
    assert judged(intel, table=table)[1] == failed


def test_an_advisory_has_to_be_accepted_by_name_where_the_policy_lists_them(intel):
    collateral = intel.collateral(tcb_info=intel.tcb_info(level("UpToDate", advisoryIDs=["INTEL-SA-00615"])))
    assert judged(intel, collateral=collateral, table={"accepted_advisories": ["INTEL-SA-00615"]})[1] == {}
    failed = judged(intel, collateral=collateral, table={"accepted_advisories": ["INTEL-SA-00001"]})[1]
    assert failed == {"sgx.advisories": "tcb"}


def test_an_unknown_policy_key_is_an_error(intel):
    with pytest.raises(MalformedInput, match="measurement"):
        judged(intel, table={"measurement": "e1" * 32})


def test_only_zeros_may_follow_the_quote(intel):
    quote = intel.quote(enclave())
    assert judged(intel, quote + bytes(100))[1] == {}
    assert judged(intel, quote + bytes(100) + b"\1")[1] == {"sgx.trailing": "format"}


def test_a_quote_whose_signature_is_broken_says_nothing_else(intel):
    quote = bytearray(intel.quote(enclave(attributes=b"\x07" + bytes(15))))
    quote[48 + 64] ^= 1  # MRENCLAVE
    assert judged(intel, bytes(quote))[1] == {"sgx.quote-signature": "signature"}


def test_an_attestation_key_that_nobody_vouched_for_is_refused(intel):
    quote = bytearray(intel.quote(enclave()))
    other = PretendIntel(root=intel.root)
    start = 48 + 384 + 4
    swapped = other.quote(enclave())
    quote[start : start + 128] = swapped[start : start + 128]
    assert judged(intel, bytes(quote))[1] == {"sgx.attestation-key": "binding"}


@pytest.mark.parametrize("cut", [0, 10, 47, 48, 300, 432, 436, 600, 900, -1])
def test_a_cut_quote_is_malformed(intel, cut):
    with pytest.raises(EvidenceMalformed):
        judged(intel, intel.quote(enclave())[:cut] or b"\0")


def test_a_td_quote_is_not_an_enclaves(intel):
    from doubles.dcap_platform import trust_domain

    with pytest.raises(EvidenceMalformed, match="TD"):
        judged(intel, intel.quote(trust_domain()))
