"""The endorsement cache over real HTTP on the loopback: fetched, verified, kept, refreshed, never used too long."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from doubles.dcap_platform import FMSPC, NOW, PretendIntel, enclave, trust_domain
from doubles.nvidia_device import PretendNvidia
from doubles.vendor_services import vendor_services
from strongroom.collateral.cache import EndorsementCache
from strongroom.collateral.sources import (
    AmdSource,
    BundleSource,
    FolderSource,
    NvidiaSource,
    OcspSource,
    PccsSource,
    Web,
    places,
    signed_member,
)
from strongroom.collateral.store import Store, read_bundle, write_bundle
from strongroom.collateral.trial import judge_endorsement
from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import Wanted, wanted_for
from strongroom.encoding import Fields, b64
from strongroom.errors import CollateralUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.dcap_collateral import Collateral
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.types import Checklist, Evidence

HOUR = timedelta(hours=1)
FMSPC_TEXT = FMSPC.hex().upper()


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(scope="module")
def intel() -> PretendIntel:
    return PretendIntel()


@pytest.fixture
def services():
    with vendor_services() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def web() -> Web:
    return Web(timeout=5.0, sleep=lambda seconds: None)


@pytest.fixture
def cache(tmp_path, services, intel, clock) -> EndorsementCache:
    trusted = Trusted(intel=intel.root.certificate)
    return EndorsementCache(
        Store(tmp_path / "store"), [PccsSource(services.url, None, web())], trusted=trusted, clock=clock
    )


def td_evidence(intel) -> Evidence:
    return Evidence("tdx", {"quote": b64(intel.quote(trust_domain())), "cc_eventlog": None})


def accepted(verifier, evidence, endorsements, table=None) -> list[str]:
    checks, policy = Checklist(), verifier.policy(Fields(table or {}, where="policy"))
    verifier.appraise(verifier.verify(evidence, endorsements, NOW, policy, checks), policy, checks)
    return [check.name for check in checks.failed]


def test_what_a_td_quote_needs_is_fetched_and_satisfies_its_verifier(services, cache, intel):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    endorsements = cache(td_evidence(intel))
    assert accepted(TdxVerifier(intel_root=intel.root.certificate), td_evidence(intel), endorsements) == []
    assert f"/tdx/certification/v4/tcb?fmspc={FMSPC_TEXT}" in services.log


def test_what_an_enclaves_quote_needs_is_fetched_and_satisfies_its_verifier(services, cache, intel):
    services.serve_intel(intel.collateral(), tee="sgx", fmspc=FMSPC_TEXT)
    evidence = Evidence("sgx", {"quote": b64(intel.quote(enclave()))})
    assert accepted(SgxVerifier(intel_root=intel.root.certificate), evidence, cache(evidence)) == []


def test_a_second_verdict_asks_nobody(services, cache, intel):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    first = cache(td_evidence(intel))
    asked = len(services.log)
    assert cache(td_evidence(intel)).items == first.items
    assert len(services.log) == asked


def test_after_a_day_it_is_asked_for_anew_and_still_used_when_nobody_answers(services, cache, intel, clock):
    document = intel.collateral(
        tdx=True,
        pck_crl=intel.crl(intel.pck_ca, end=NOW + 10 * 24 * HOUR),
        root_ca_crl=intel.crl(intel.root, end=NOW + 10 * 24 * HOUR),
    )
    services.serve_intel(document, tee="tdx", fmspc=FMSPC_TEXT)
    cache(td_evidence(intel))
    asked = len(services.log)
    clock.now = NOW + 25 * HOUR
    services.answers.clear()
    assert "collateral" in cache(td_evidence(intel)).items
    assert len(services.log) > asked


@pytest.mark.parametrize("what", ["CRL", "TCB info"])
def test_nothing_is_used_past_its_next_update(services, cache, intel, clock, what):
    changes = {"tcb_info": intel.tcb_info(tdx=True, nextUpdate="2026-06-01T12:00:00Z")} if what == "TCB info" else {}
    services.serve_intel(intel.collateral(tdx=True, **changes), tee="tdx", fmspc=FMSPC_TEXT)
    cache(td_evidence(intel))
    services.answers.clear()
    clock.now = NOW + (13 * HOUR if changes else 24 * HOUR + timedelta(seconds=1))
    assert cache(td_evidence(intel)).items == {}
    with pytest.raises(CollateralUnavailable, match="not found"):
        cache.fetch_for(td_evidence(intel))


def test_collateral_that_does_not_verify_is_not_kept(services, cache, intel):
    stranger = PretendIntel()
    services.serve_intel(stranger.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    with pytest.raises(CollateralUnavailable, match="chain"):
        cache.fetch_for(td_evidence(intel))
    assert list(cache.store) == []


def test_collateral_for_another_platform_is_not_kept(services, cache, intel):
    other = intel.collateral(tcb_info=intel.tcb_info(tdx=True, fmspc="00A067110000"), tdx=True)
    services.serve_intel(other, tee="tdx", fmspc=FMSPC_TEXT)
    with pytest.raises(CollateralUnavailable, match="00A067110000"):
        cache.fetch_for(td_evidence(intel))


def test_whoever_can_write_to_the_store_gains_nothing(services, cache, intel):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    cache(td_evidence(intel))
    services.answers.clear()
    [path] = cache.store.folder.glob("*.json")
    entry = json.loads(path.read_text())
    entry["octets"] = b64(PretendIntel().collateral(tdx=True))
    path.write_text(json.dumps(entry))
    assert cache(td_evidence(intel)).items == {}
    path.write_text("{")
    assert cache(td_evidence(intel)).items == {}
    assert path.stat().st_mode & 0o077 == 0 or cache.store.folder.stat().st_mode & 0o077 == 0


def test_a_busy_service_is_asked_again_and_a_refusing_one_is_not(services, cache, intel):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    services.failing = [503, 429]
    assert "collateral" in cache(td_evidence(intel)).items
    services.log.clear()
    services.failing = [403]
    with pytest.raises(CollateralUnavailable, match="403"):
        cache.fetch_for(td_evidence(intel))
    assert len(services.log) == 1


def test_nobody_there_is_said_with_a_next_step(tmp_path, intel, clock):
    source = PccsSource("http://127.0.0.1:9", None, web())
    cache = EndorsementCache(Store(tmp_path), [source], trusted=Trusted(intel=intel.root.certificate), clock=clock)
    with pytest.raises(CollateralUnavailable) as refusal:
        cache.fetch_for(td_evidence(intel))
    assert "bundle" in refusal.value.hint


def test_evidence_that_cannot_be_read_needs_nothing_and_says_so_when_asked(cache):
    assert cache(Evidence("tdx", {"quote": "AAAA"})).items == {}
    assert cache(Evidence("simulated", {})).items == {}
    with pytest.raises(EvidenceMalformed):
        cache.fetch_for(Evidence("tdx", {"quote": "AAAA"}))


def test_what_could_not_be_had_is_not_asked_for_again_at_once(services, cache, intel, clock):
    assert cache(td_evidence(intel)).items == {}
    asked = len(services.log)
    assert cache(td_evidence(intel)).items == {}
    assert len(services.log) == asked
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    clock.now = NOW + timedelta(minutes=6)
    assert "collateral" in cache(td_evidence(intel)).items


def test_made_up_platforms_cannot_make_us_hammer_a_service(services, cache, clock):
    for number in range(200):
        with pytest.raises(CollateralUnavailable):
            cache.obtain(Wanted(f"dcap/tdx/{number:012X}/platform", "collateral"))
    assert len(services.log) == 60
    clock.now = NOW + timedelta(minutes=1)
    with pytest.raises(CollateralUnavailable, match="not found"):
        cache.obtain(Wanted("dcap/tdx/FFFFFFFFFFFF/platform", "collateral"))


def test_a_disk_that_cannot_be_written_to_does_not_cost_a_good_answer(services, intel, clock, tmp_path):
    (tmp_path / "file").write_text("")
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    trusted = Trusted(intel=intel.root.certificate)
    cache = EndorsementCache(
        Store(tmp_path / "file" / "store"), [PccsSource(services.url, None, web())], trusted=trusted, clock=clock
    )
    assert "collateral" in cache(td_evidence(intel)).items
    with pytest.raises(CollateralUnavailable, match="written"):
        cache.fetch_for(td_evidence(intel))


def test_the_newest_tcb_recovery_is_asked_for_where_it_is_wanted(services, intel):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    for path in [each for each in services.answers if "/tdx/" in each]:
        services.answers[path + ("&" if "?" in path else "?") + "update=early"] = services.answers.pop(path)
    [wanted] = wanted_for(td_evidence(intel))
    assert PccsSource(services.url, None, web(), early=True).fetch(wanted)
    with pytest.raises(CollateralUnavailable):
        PccsSource(services.url, None, web()).fetch(wanted)


def test_places_are_asked_nearest_first(tmp_path):
    found = places(folders=[tmp_path], bundles=[tmp_path / "b"], pccs="https://pccs.example", offline=False)
    assert [each.name for each in found[:3]] == [str(tmp_path), str(tmp_path / "b"), "https://pccs.example"]
    assert len(places(folders=[tmp_path], offline=True)) == 1


# -- the exact text ------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["", " ", "\n  "])
def test_the_signed_text_is_cut_out_and_never_written_again(spacing):
    text = '{"a": 1.50,\n "b":"\\u00e9", "a2": []}'
    body = (
        f'{{{spacing}"tcbInfo"{spacing}:{spacing}{text}{spacing},{spacing}"signature":{spacing}"{"ab" * 64}"{spacing}}}'
    )
    assert signed_member(body.encode(), "tcbInfo") == (text, "ab" * 64)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"tcbInfo":{}}', b'{"signature":"ab","tcbInfo":{}}', b'{"tcbInfo":{},"signature":"ab"}', b"\xff",
     b'{"tcbInfo":{},"signature":"' + b"ab" * 64 + b'"} more', b'{"tcbInfo":' + b"[" * 100000],
)  # fmt: skip
def test_an_answer_of_another_form_is_refused(body):
    with pytest.raises(CollateralUnavailable):
        signed_member(body, "tcbInfo")


# -- folders and bundles ----------------------------------------------------------------


def test_a_bundle_serves_a_host_without_a_network(services, cache, intel, tmp_path, clock):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    cache.fetch_for(td_evidence(intel))
    bundle = tmp_path / "bundle.json"
    assert write_bundle(cache.store, bundle) == 1
    trusted = Trusted(intel=intel.root.certificate)
    lonely = EndorsementCache(Store(tmp_path / "lonely"), [BundleSource(bundle)], trusted=trusted, clock=clock)
    assert (
        accepted(TdxVerifier(intel_root=intel.root.certificate), td_evidence(intel), lonely(td_evidence(intel))) == []
    )
    other = EndorsementCache(Store(tmp_path / "other"), [], trusted=trusted, clock=clock)
    kept, refused = other.take_in(read_bundle(bundle))
    assert (len(kept), refused) == (1, [])
    assert other(td_evidence(intel)).items == cache(td_evidence(intel)).items


def test_a_bundle_is_judged_entry_by_entry(services, cache, intel, tmp_path, clock):
    services.serve_intel(intel.collateral(tdx=True), tee="tdx", fmspc=FMSPC_TEXT)
    cache.fetch_for(td_evidence(intel))
    bundle = tmp_path / "bundle.json"
    write_bundle(cache.store, bundle)
    stranger = EndorsementCache(Store(tmp_path / "s"), [], trusted=Trusted(), clock=clock)  # Intel's real root
    kept, refused = stranger.take_in(read_bundle(bundle))
    assert kept == [] and "chain" in refused[0]
    bundle.write_text('{"format": "x", "entries": []}')
    with pytest.raises(MalformedInput):
        read_bundle(bundle)
    with pytest.raises(CollateralUnavailable):
        read_bundle(tmp_path / "absent.json")


def test_a_folder_of_vendor_files_is_a_source(tmp_path, intel, clock):
    path = tmp_path / "files" / "dcap" / "tdx" / FMSPC_TEXT / "platform.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(intel.collateral(tdx=True))
    cache = EndorsementCache(
        Store(tmp_path / "store"), [FolderSource(tmp_path / "files")], trusted=Trusted(intel=intel.root.certificate),
        clock=clock,
    )  # fmt: skip
    assert Collateral.parse(cache(td_evidence(intel)).items["collateral"]).missing == ()


@pytest.mark.parametrize(
    "name", ["rim/../x", "rim", "rim/", "rim//x", "/rim/x", "rim/x y", "a/b/c/d/e/f/g", "rim/..", "rim/x\n"]
)
def test_names_are_words_and_never_paths(name):
    with pytest.raises(MalformedInput):
        Wanted(name, "role")


# -- AMD -------------------------------------------------------------------------------------


def test_a_vcek_is_asked_for_by_chip_and_tcb_and_kept_only_for_them(services, shared_evidence, tmp_path):
    folder = shared_evidence / "sev-snp" / "genoa-v5"
    evidence = Evidence("snp", {"report": b64((folder / "report.bin").read_bytes())})
    [vcek, crl] = wanted_for(evidence)
    product, chip, tcb = vcek.words
    query = "&".join(f"{k}SPL={int(v):02d}" for k, v in zip(("bl", "tee", "snp", "ucode"), tcb.split("."), strict=True))
    services.answers[f"/vcek/v1/{product}/{chip}?{query}"] = ((folder / "vcek.der").read_bytes(), {})
    clock = Clock(datetime(2025, 12, 1, tzinfo=UTC))
    cache = EndorsementCache(Store(tmp_path), [AmdSource(services.url, web())], clock=clock)
    assert cache.obtain(vcek).entry.octets == (folder / "vcek.der").read_bytes()
    assert set(cache(evidence).items) == {"vcek"}  # this service has no CRL
    assert crl.name == f"amd-crl/vcek/{product}"
    wrong = Wanted(f"vcek/{product}/{'0' * len(chip)}/{tcb}", "vcek")
    with pytest.raises(CollateralUnavailable, match="chip"):
        judge_endorsement(wrong, (folder / "vcek.der").read_bytes(), clock.now, Trusted())


# -- NVIDIA -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvidia() -> PretendNvidia:
    return PretendNvidia()


def gpu_evidence(nvidia) -> Evidence:
    device = {"arch": "HOPPER", "uuid": "", "evidence": b64(nvidia.report(bytes(32))), "certificate": b64(nvidia.chain)}
    return Evidence("nvidia", {"device_evidence_list": [device]})


def nvidia_cache(services, nvidia, folder: Path, clock) -> EndorsementCache:
    sources = [NvidiaSource(f"{services.url}/v1/rim", web()), OcspSource(lambda url: f"{services.url}/ocsp", web())]
    return EndorsementCache(Store(folder), sources, trusted=trusting(nvidia), clock=clock)


def trusting(nvidia) -> Trusted:
    return Trusted(nvidia_rim=nvidia.rim_root.certificate, nvidia_device=nvidia.root.certificate)


def test_rims_and_ocsp_answers_are_fetched_and_satisfy_the_strictest_policy(services, nvidia, tmp_path, clock):
    driver, vbios = (each for each in wanted_for(gpu_evidence(nvidia)) if each.kind == "rim")
    assert driver.name == f"rim/NV_GPU_DRIVER_GH100_{nvidia.driver}"
    assert vbios.name.endswith("_96009F0001")
    services.serve_rim(driver.words[0], nvidia.rim("driver"))
    services.serve_rim(vbios.words[0], nvidia.rim("vbios"))
    for about, issuer in (
        (nvidia.identity, nvidia.root),
        (nvidia.rim_ca, nvidia.rim_root),
        (nvidia.rim_signer, nvidia.rim_ca),
    ):
        services.ocsp[about.certificate.serial_number] = nvidia.ocsp(about, issuer)
    cache = nvidia_cache(services, nvidia, tmp_path, clock)
    verifier = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    table = {"require_revocation_status": True}
    assert accepted(verifier, gpu_evidence(nvidia), cache(gpu_evidence(nvidia)), table) == []
    kept, missing = cache.fetch_for(gpu_evidence(nvidia))
    assert sorted({each.entry.wanted.kind for each in kept}) == ["ocsp", "rim"] and missing == []


def test_an_answer_that_says_revoked_is_kept_for_the_verifier_to_see(services, nvidia, tmp_path, clock):
    services.ocsp[nvidia.identity.certificate.serial_number] = nvidia.ocsp(nvidia.identity, nvidia.root, revoked=True)
    cache = nvidia_cache(services, nvidia, tmp_path, clock)
    verifier = NvidiaVerifier(device_root=nvidia.root.certificate, rim_root=nvidia.rim_root.certificate)
    failed = accepted(verifier, gpu_evidence(nvidia), cache(gpu_evidence(nvidia)), {"required_rims": []})
    assert failed == ["nvidia.device.revoked"]


def test_a_rim_of_another_version_or_signer_is_not_kept(services, nvidia, tmp_path, clock):
    driver, _ = (each for each in wanted_for(gpu_evidence(nvidia)) if each.kind == "rim")
    cache = nvidia_cache(services, nvidia, tmp_path, clock)
    for wrong in (nvidia.rim("driver", version="1.2.3"), PretendNvidia().rim("driver"), b"<x/>"):
        services.serve_rim(driver.words[0], wrong)
        with pytest.raises(CollateralUnavailable):
            cache.obtain(driver)
    assert list(cache.store) == []


def test_real_rims_and_quotes_are_named_as_their_vendors_name_them(shared_evidence):
    def device(path: str) -> Evidence:
        folder = shared_evidence / "nvidia" / path
        report, chain = ((folder / name).read_bytes() for name in ("evidence.bin", "cert_chain.pem"))
        return Evidence(
            "nvidia",
            {"device_evidence_list": [{"arch": "", "uuid": "", "evidence": b64(report), "certificate": b64(chain)}]},
        )

    def rims(path: str) -> list[str]:
        return [each.words[0] for each in wanted_for(device(path)) if each.kind == "rim"]

    assert rims("h100-550.90.07") == ["NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"]
    assert rims("gb100-575.32") == [
        "NV_GPU_CC_DRIVER_GB100_575.32",
        "NV_GPU_VBIOS_G525_0220_886_97008800 0F".replace(" ", ""),
    ]
    assert rims("ls10-nvswitch") == ["NV_SWITCH_BIOS_5612_0002_890_9610550001"]
    quote = (shared_evidence / "sgx" / "v3-00a067-config-sw-hardening" / "quote.bin").read_bytes()
    [wanted] = wanted_for(Evidence("sgx", {"quote": b64(quote)}))
    assert wanted.name == "dcap/sgx/00A067110000/processor"


def test_real_collateral_and_rims_pass_the_trial_while_they_are_valid(shared_evidence):
    folder = shared_evidence / "tdx" / "v4-b0c06f-uptodate"
    [wanted] = wanted_for(Evidence("tdx", {"quote": b64((folder / "quote.bin").read_bytes())}))
    when = datetime(2025, 7, 1, tzinfo=UTC)
    document = (folder / "collateral.json").read_bytes()
    assert judge_endorsement(wanted, document, when, Trusted()).expires == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
    with pytest.raises(CollateralUnavailable):
        judge_endorsement(wanted, document, datetime(2025, 8, 1, tzinfo=UTC), Trusted())
    rim = (shared_evidence / "nvidia" / "rims" / "driver_550.144.03_good.xml").read_bytes()
    until = judge_endorsement(
        Wanted("rim/NV_GPU_DRIVER_GH100_550.144.03", "driver_rim"), rim, datetime(2025, 3, 1, tzinfo=UTC), Trusted()
    )
    assert until.expires.date().isoformat() == "2026-12-30"
