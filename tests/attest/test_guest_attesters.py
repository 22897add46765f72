"""Attesters against emulated devices: what they obtain is judged, and what is not about us is not passed on."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from doubles import tee_devices
from doubles.amd_keys import NOW as AMD_NOW
from doubles.amd_keys import amd_keys
from doubles.cca_platform import PretendCca
from doubles.dcap_platform import PretendIntel, enclave, trust_domain
from doubles.nvidia_device import PretendNvidia
from doubles.tee_devices import (
    NOW,
    PretendConfigfs,
    PretendNsm,
    PretendNvml,
    PretendQuotingService,
    PretendSevGuest,
    certificate_table,
    nitro_document,
    tdx_guest,
)
from evidence.pki import Authority
from strongroom.attest import cca, ioctl, nitro, nvidia, sgx, snp, tdx, tsm
from strongroom.attest.cca import CcaAttester
from strongroom.attest.nitro import NitroAttester
from strongroom.attest.nvidia import NvidiaAttester
from strongroom.attest.sgx import SgxAttester
from strongroom.attest.snp import SnpAttester
from strongroom.attest.tdx import TdxAttester
from strongroom.errors import AttesterUnavailable, EvidenceRefused
from strongroom.evidence.cca import CcaVerifier
from strongroom.evidence.judge import Presented, Verdict, judge, judge_composite
from strongroom.evidence.nitro import NitroVerifier
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.types import Endorsements, Evidence
from strongroom.plugins import Plugins

BINDING = bytes(range(100, 148))
PADDED = BINDING.ljust(64, b"\0")


def judged(
    evidence: Evidence, verifier: Any, now: datetime, items: Mapping[str, bytes] | None = None, table: str = ""
) -> Verdict:
    verifiers = {evidence.tee: verifier}
    policy = Policy.parse(f'name = "test"\n[{evidence.tee}]\n{table}', verifiers)
    return judge(
        evidence, binding=BINDING, endorsements=Endorsements(items or {}), policy=policy, now=now, verifiers=verifiers
    )


def no_sleep(seconds: float) -> None:
    assert seconds > 0


# -- SEV-SNP ------------------------------------------------------------------------

CHIP = amd_keys("Milan").chip()
TABLE = certificate_table({"ASK": b"whatever the host says", "VCEK": CHIP.certificate()})


def snp_blob(report_data: bytes) -> tuple[bytes, bytes]:
    return CHIP.report(report_data=report_data).serialise(), TABLE


def snp_verifier() -> SnpVerifier:
    return SnpVerifier(issuers=amd_keys("Milan").issuers)


def test_an_snp_report_from_configfs_is_judged_with_the_certificate_that_came_with_it():
    reports = PretendConfigfs("sev_guest", snp_blob)
    evidence = SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)
    assert judged(evidence, snp_verifier(), AMD_NOW).claims["vmpl"] == 0
    assert reports.reports == {}, "the report directory is removed"


def test_evidence_of_an_earlier_request_is_not_evidence_of_this_one():
    evidence = SnpAttester(reports=PretendConfigfs("sev_guest", snp_blob)).evidence(BINDING[::-1])
    with pytest.raises(EvidenceRefused, match=r"snp\.binding"):
        judged(evidence, snp_verifier(), AMD_NOW)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR, errno.EAGAIN])
def test_busy_firmware_is_asked_again(number):
    reports = PretendConfigfs("sev_guest", snp_blob, busy=3, busy_error=number)
    slept = []
    evidence = SnpAttester(reports=reports, sleep=slept.append).evidence(BINDING)
    assert judged(evidence, snp_verifier(), AMD_NOW)
    assert slept == sorted(slept)
    assert len(slept) == 3


def test_firmware_that_stays_busy_is_given_up():
    reports = PretendConfigfs("sev_guest", snp_blob, busy=99)
    with pytest.raises(AttesterUnavailable, match="5 attempts"):
        SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)
    assert reports.reports == {}


@pytest.mark.parametrize("moment", ["write", "read"])
def test_a_rival_that_writes_into_our_report_is_noticed_and_we_start_over(moment):
    reports = PretendConfigfs("sev_guest", snp_blob, rivals={moment: 2})
    evidence = SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)
    assert judged(evidence, snp_verifier(), AMD_NOW)
    assert len(set(reports.made)) >= 2, "each attempt has a report of its own"


def test_an_error_at_close_is_not_lost():
    reports = PretendConfigfs("sev_guest", snp_blob, close_error=errno.EPERM)
    with pytest.raises(AttesterUnavailable, match="not permitted"):
        SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)


def test_a_report_over_other_report_data_is_not_passed_on():
    reports = PretendConfigfs("sev_guest", lambda asked: snp_blob(b"\x99" * 64))
    with pytest.raises(AttesterUnavailable, match="other report data"):
        SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)


@pytest.mark.parametrize("blob", [b"", b"x", bytes(1184), bytes(5000)])
def test_what_is_no_report_is_not_passed_on(blob):
    reports = PretendConfigfs("sev_guest", lambda asked: (blob, b""))
    with pytest.raises(AttesterUnavailable):
        SnpAttester(reports=reports, sleep=no_sleep).evidence(BINDING)


@pytest.mark.parametrize("size", [0, 16, 31, 65])
def test_report_data_that_would_not_bind_is_refused(size):
    with pytest.raises(AttesterUnavailable, match="32 to 64"):
        SnpAttester(reports=PretendConfigfs("sev_guest", snp_blob)).evidence(bytes(size))


def device(tmp_path, name="device"):
    path = tmp_path / name
    path.write_bytes(b"")
    return path


def old_kernel() -> PretendConfigfs:
    return PretendConfigfs("", snp_blob, exists=False)


def sev_guest(**options) -> PretendSevGuest:
    return PretendSevGuest(
        lambda data, vmpl: CHIP.report(report_data=data, vmpl=vmpl).serialise(), **({"table": TABLE} | options)
    )


def test_without_configfs_the_snp_device_is_asked(tmp_path):
    attester = SnpAttester(reports=old_kernel(), device=device(tmp_path), ioctl=sev_guest())
    assert judged(attester.evidence(BINDING), snp_verifier(), AMD_NOW)


def test_a_large_certificate_table_gets_the_space_it_asks_for(tmp_path):
    ioctl = sev_guest(table=certificate_table({"ASK": bytes(50_000), "VCEK": CHIP.certificate()}))
    attester = SnpAttester(reports=old_kernel(), device=device(tmp_path), ioctl=ioctl)
    assert judged(attester.evidence(BINDING), snp_verifier(), AMD_NOW)
    assert ioctl.calls == 2


def test_the_vmpl_that_was_asked_for_is_the_one_in_the_report(tmp_path):
    attester = SnpAttester(reports=old_kernel(), device=device(tmp_path), ioctl=sev_guest(), vmpl=2)
    assert judged(attester.evidence(BINDING), snp_verifier(), AMD_NOW, table="max_vmpl = 2").claims["vmpl"] == 2


@pytest.mark.parametrize("options", [{"status": 0x16}, {"error": errno.EAGAIN}, {"table": b"\x01" * 48}])
def test_a_refusing_snp_device_is_reported(tmp_path, options):
    attester = SnpAttester(reports=old_kernel(), device=device(tmp_path), ioctl=sev_guest(**options))
    with pytest.raises(AttesterUnavailable):
        attester.evidence(BINDING)


def test_a_machine_without_snp_says_so(tmp_path):
    with pytest.raises(AttesterUnavailable):
        SnpAttester(reports=old_kernel(), device=tmp_path / "none", ioctl=sev_guest()).evidence(BINDING)
    assert "6.7" in snp.missing(old_kernel(), tmp_path / "none")
    assert "tdx_guest" in snp.missing(PretendConfigfs("tdx_guest", snp_blob), tmp_path / "none")
    assert snp.missing(PretendConfigfs("sev_guest", snp_blob), tmp_path / "none") == ""
    assert snp.missing(old_kernel(), device(tmp_path)) == ""


# -- TDX --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


def td_quote(intel: PretendIntel, report_data: bytes) -> bytes:
    return intel.quote(trust_domain(report_data=report_data))


def test_a_tdx_quote_from_configfs_is_judged(intel, tmp_path):
    reports = PretendConfigfs("tdx_guest", lambda data: (td_quote(intel, data), b""))
    evidence = TdxAttester(reports=reports, event_log=tmp_path / "none", sleep=no_sleep).evidence(BINDING)
    verifier = TdxVerifier(intel_root=intel.root.certificate)
    assert judged(evidence, verifier, NOW, {"collateral": intel.collateral(tdx=True)})
    assert evidence.body["cc_eventlog"] is None


def test_without_configfs_the_tdreport_goes_to_the_hosts_quoting_service(intel, tmp_path):
    service = PretendQuotingService(lambda data: td_quote(intel, data))
    attester = TdxAttester(
        reports=old_kernel(), device=device(tmp_path), ioctl=tdx_guest, connect=service.connect,
        event_log=tmp_path / "none",
    )  # fmt: skip
    verifier = TdxVerifier(intel_root=intel.root.certificate)
    assert judged(attester.evidence(BINDING), verifier, NOW, {"collateral": intel.collateral(tdx=True)})


@pytest.mark.parametrize(
    "spoil",
    [lambda a: a[:-1], lambda a: a + b"x", lambda a: b"\2" + a[1:], lambda a: a[:20], lambda a: b"", lambda a: a[:24]],
)
def test_a_quoting_service_that_answers_nonsense_is_reported(intel, tmp_path, spoil):
    service = PretendQuotingService(lambda data: td_quote(intel, data), spoil=spoil)
    attester = TdxAttester(
        reports=old_kernel(), device=device(tmp_path), ioctl=tdx_guest, connect=service.connect,
        event_log=tmp_path / "none",
    )  # fmt: skip
    with pytest.raises(AttesterUnavailable):
        attester.evidence(BINDING)


def test_a_quoting_service_that_refuses_or_is_not_there_is_reported(intel, tmp_path):
    def nobody():
        raise ConnectionRefusedError("no qgsd")

    service = PretendQuotingService(lambda data: td_quote(intel, data), error=0x11001)
    for connect in (service.connect, nobody):
        attester = TdxAttester(
            reports=old_kernel(), device=device(tmp_path), ioctl=tdx_guest, connect=connect,
            event_log=tmp_path / "none",
        )  # fmt: skip
        with pytest.raises(AttesterUnavailable):
            attester.evidence(BINDING)


def test_the_boot_event_log_travels_with_the_quote(intel, tmp_path):
    log = tmp_path / "CCEL"
    log.write_bytes(b"log")
    reports = PretendConfigfs("tdx_guest", lambda data: (td_quote(intel, data), b""))
    assert TdxAttester(reports=reports, event_log=log).evidence(BINDING).body["cc_eventlog"] == "bG9n"


def test_an_enclaves_quote_is_no_trust_domains_and_the_reverse(intel, tmp_path):
    reports = PretendConfigfs("tdx_guest", lambda data: (intel.quote(enclave(report_data=data)), b""))
    with pytest.raises(AttesterUnavailable, match="trust domain"):
        TdxAttester(reports=reports, event_log=tmp_path / "none").evidence(BINDING)


def test_a_machine_without_tdx_says_so(tmp_path):
    assert tdx.missing(old_kernel(), tmp_path / "none")
    assert tdx.missing(PretendConfigfs("tdx_guest", snp_blob), tmp_path / "none") == ""


# -- CCA, SGX -----------------------------------------------------------------------------


def test_a_cca_token_is_judged():
    platform = PretendCca()
    reports = PretendConfigfs("arm_cca_guest", lambda data: (platform.token(data), b""))
    evidence = CcaAttester(reports=reports, sleep=no_sleep).evidence(BINDING)
    assert judged(evidence, CcaVerifier(), NOW, {"cpak": platform.cpak})
    assert cca.missing(reports) == ""


def test_a_cca_token_over_another_challenge_is_not_passed_on():
    platform = PretendCca()
    for blob in (platform.token(b"\x01" * 64), b"\xa0"):
        reports = PretendConfigfs("arm_cca_guest", lambda data, blob=blob: (blob, b""))
        with pytest.raises(AttesterUnavailable):
            CcaAttester(reports=reports, sleep=no_sleep).evidence(BINDING)


def gramine(tmp_path, intel, *, kind="dcap", body=enclave):
    """Gramine's pseudo-files: the quote follows what was written last."""

    class Quote(type(tmp_path)):
        def read_bytes(self):
            return intel.quote(body(report_data=(tmp_path / "user_report_data").read_bytes()))

    (tmp_path / "user_report_data").write_bytes(bytes(64))
    (tmp_path / "quote").write_bytes(b"")
    (tmp_path / "attestation_type").write_text(kind)

    class Files(type(tmp_path)):
        def __truediv__(self, name):
            return Quote(tmp_path, name) if name == "quote" else tmp_path / name

    return Files(tmp_path)


def test_an_sgx_quote_under_gramine_is_judged(tmp_path, intel):
    files = gramine(tmp_path, intel)
    evidence = SgxAttester(files=files).evidence(BINDING)
    assert judged(evidence, SgxVerifier(intel_root=intel.root.certificate), NOW, {"collateral": intel.collateral()})
    assert sgx.missing(files) == ""


def test_gramine_without_dcap_or_without_an_enclave_says_so(tmp_path, intel):
    assert "epid" in sgx.missing(gramine(tmp_path, intel, kind="epid"))
    assert "Gramine" in sgx.missing(tmp_path / "none")
    with pytest.raises(AttesterUnavailable):
        SgxAttester(files=tmp_path / "none").evidence(BINDING)
    with pytest.raises(AttesterUnavailable):
        SgxAttester(files=gramine(tmp_path, intel, body=trust_domain)).evidence(BINDING)


# -- Nitro ----------------------------------------------------------------------------------

AWS = Authority.root("aws.nitro-enclaves", usage=("key_cert_sign", "crl_sign"))
ZONE = AWS.issue("zone", ca=True)
ENCLAVE = ZONE.issue("i-0-enc0")


def document(user_data: bytes, **changes) -> bytes:
    return nitro_document(AWS, ENCLAVE, (ZONE,), user_data, at=NOW, **changes)


def test_a_nitro_document_is_judged(tmp_path):
    attester = NitroAttester(device=device(tmp_path), ioctl=PretendNsm(document))
    evidence = attester.evidence(BINDING)
    assert judged(evidence, NitroVerifier(roots=(AWS.certificate,)), NOW).claims["module_id"] == "i-0-enc0"


def test_a_nitro_module_that_refuses_or_answers_for_another_is_reported(tmp_path):
    for module in (
        PretendNsm(document, refuse="InvalidOperation"),
        PretendNsm(lambda data: document(b"\x01" * 64)),
        PretendNsm(lambda data: b"\xa0"),
    ):
        with pytest.raises(AttesterUnavailable):
            NitroAttester(device=device(tmp_path), ioctl=module).evidence(BINDING)
    assert "nsm" in nitro.missing(tmp_path / "none")
    assert nitro.missing(device(tmp_path)) == ""


@pytest.mark.parametrize("answer", [None, {}, "x", {"Attestation": None}, {"Attestation": "x"}, {"Error": "x"}])
def test_a_nitro_module_that_answers_in_another_form_is_reported(tmp_path, answer):
    with pytest.raises(AttesterUnavailable, match="refused"):
        NitroAttester(device=device(tmp_path), ioctl=PretendNsm(document, answer=lambda: answer)).evidence(BINDING)


def test_a_reader_of_the_device_who_keeps_its_lock_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ioctl, "PATIENCE_S", 0.1)
    path = device(tmp_path)
    with open(path, "rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        assert NitroAttester(device=path, ioctl=PretendNsm(document)).evidence(BINDING).tee == "aws-nitro"


# -- NVIDIA ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vendor() -> PretendNvidia:
    return PretendNvidia()


def second(vendor: PretendNvidia) -> PretendNvidia:
    return replace(vendor, root=vendor.root)


def test_a_cpu_and_its_two_gpus_are_judged_together(vendor, tmp_path):
    other = second(vendor)
    gpus = NvidiaAttester(load=lambda: PretendNvml([vendor, other])).evidence(BINDING)
    cpu = SnpAttester(reports=PretendConfigfs("sev_guest", snp_blob)).evidence(BINDING)
    verifiers = {"snp": snp_verifier(), "nvidia": NvidiaVerifier(device_root=vendor.root.certificate)}
    policy = Policy.parse('name = "two"\n[snp]\n[nvidia]\nrequired_rims = []\n[devices]\ngpu = 2\n', verifiers)
    verdict = judge_composite(
        Presented(cpu), [Presented(gpus)], binding=BINDING, device_binding=BINDING, policy=policy, now=NOW,
        verifiers=verifiers,
    )  # fmt: skip
    assert list(verdict.submodules) == ["cpu0", "gpu0", "gpu1"]


def test_the_same_gpu_twice_is_not_two(vendor):
    gpus = NvidiaAttester(load=lambda: PretendNvml([vendor, vendor])).evidence(BINDING)
    cpu = SnpAttester(reports=PretendConfigfs("sev_guest", snp_blob)).evidence(BINDING)
    verifiers = {"snp": snp_verifier(), "nvidia": NvidiaVerifier(device_root=vendor.root.certificate)}
    policy = Policy.parse('name = "two"\n[snp]\n[nvidia]\nrequired_rims = []\n[devices]\ngpu = 2\n', verifiers)
    with pytest.raises(EvidenceRefused, match="distinct"):
        judge_composite(
            Presented(cpu), [Presented(gpus)], binding=BINDING, device_binding=BINDING, policy=policy, now=NOW,
            verifiers=verifiers,
        )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"stale": True},
        {"gpus": []},
        {"codes": {"nvmlInit_v2": 9}},
        {"codes": {"nvmlDeviceGetConfComputeGpuAttestationReport": 3}},
        {"absent": ("nvmlDeviceGetConfComputeGpuCertificate",)},
        {"confidential": 0},
        {"devtools": 1},
        {"confidential": 0, "together": 1, "devtools": 1},
        {"environment": 1},
    ],
    ids=["stale", "none", "no-driver", "no-report", "old-driver", "off", "devtools", "together-devtools", "simulation"],
)
def test_gpus_that_do_not_attest_for_us_are_reported(vendor, options):
    library = PretendNvml(**({"gpus": [vendor]} | options))
    with pytest.raises(AttesterUnavailable):
        NvidiaAttester(load=lambda: library).evidence(BINDING)
    assert library.running == 0, "the library is shut down whatever happens"


def test_protected_pcie_is_a_confidential_mode_and_older_drivers_know_of_none(vendor):
    """In NVIDIA's mode for several GPUs the feature itself reads as off."""
    together = PretendNvml([vendor], confidential=0, together=1)
    assert NvidiaAttester(load=lambda: together).evidence(BINDING).tee == "nvidia"
    old = PretendNvml([vendor], absent=("nvmlSystemGetConfComputeSettings",))
    assert NvidiaAttester(load=lambda: old).evidence(BINDING).tee == "nvidia"
    old.confidential = 0
    with pytest.raises(AttesterUnavailable, match="confidential computing is off"):
        NvidiaAttester(load=lambda: old).evidence(BINDING)


def test_what_a_machine_lacks_for_gpu_evidence_is_one_sentence(vendor):
    def no_driver():
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    assert "driver" in nvidia.missing(no_driver)
    assert "no GPU" in nvidia.missing(lambda: PretendNvml([]))
    assert "off" in nvidia.missing(lambda: PretendNvml([vendor], confidential=0))
    assert "devtools" in nvidia.missing(lambda: PretendNvml([vendor], devtools=1))
    assert nvidia.missing(lambda: PretendNvml([vendor])) == ""


# -- the real files, and the offers -----------------------------------------------------------------


def test_configfs_files_are_read_and_written_whole(tmp_path):
    reports = tsm.Configfs(tmp_path)
    reports.make("one")
    (tmp_path / "one" / "inblob").write_bytes(b"")
    reports.write("one", "inblob", PADDED)
    assert reports.read("one", "inblob") == PADDED
    assert reports.has("one", "inblob")
    assert not reports.has("one", "auxblob")
    with pytest.raises(FileNotFoundError):
        reports.write("one", "outblob", b"")
    (tmp_path / "one" / "inblob").unlink()
    reports.remove("one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tee", sorted(Plugins().attesters()))
def test_every_offer_says_what_is_missing_without_changing_anything(tee):
    assert isinstance(Plugins().attesters()[tee].missing(), str)


def test_the_doubles_speak_the_request_codes_of_the_kernel():
    assert (snp.GET_EXTENDED_REPORT, tdx.GET_REPORT, nitro.ASK) == (0xC0205302, 0xC4405401, 0xC0200A00)
    assert tee_devices.certificate_table({})[:24] == bytes(24)
