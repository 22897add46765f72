"""Fuzz the parsers of SGX, TDX, NVIDIA and CCA evidence and of collateral, with atheris.

    python tests/fuzz/fuzz_evidence_dcap_nvidia_cca.py TARGET [-max_total_time=600 …]
    python tests/fuzz/fuzz_evidence_dcap_nvidia_cca.py --list

A target takes bytes. Whatever they are, only errors of our own tree may come out; what parses is written back as it
was read; and made-up evidence is never accepted. Needs ``pip install atheris``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cryptography.x509 import Certificate
from doubles.cca_platform import PretendCca
from doubles.dcap_platform import NOW, PretendIntel, enclave, sgx_extension, trust_domain
from doubles.nvidia_device import PretendNvidia
from strongroom.collateral.sources import signed_member
from strongroom.collateral.store import Entry
from strongroom.collateral.wanted import wanted_for
from strongroom.encoding import Fields, b64
from strongroom.errors import CollateralUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.cca import CcaVerifier
from strongroom.evidence.cca_token import PlatformClaims, RealmClaims, Token, parse_cpak
from strongroom.evidence.certificates import parse_chain
from strongroom.evidence.dcap_collateral import Collateral, PckExtension
from strongroom.evidence.dcap_quote import Quote
from strongroom.evidence.dcap_tcb import QeIdentity, TcbInfo
from strongroom.evidence.nvidia import NvidiaVerifier
from strongroom.evidence.nvidia_rim import Rim, SignedRim
from strongroom.evidence.nvidia_spdm import SpdmReport
from strongroom.evidence.revocation import Lists
from strongroom.evidence.sgx import SgxVerifier
from strongroom.evidence.tdx import TdxVerifier
from strongroom.evidence.tdx_event_log import parse_log, replay
from strongroom.evidence.types import Checklist, Endorsements, Evidence

INTEL, NVIDIA, CCA = PretendIntel(), PretendNvidia(), PretendCca()


def exact(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """What parses serialises to the very same bytes."""

    def target(octets: bytes) -> None:
        assert parse(octets).serialise() == octets  # type: ignore[attr-defined]

    return target


def reads(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(octets: bytes) -> None:
        parse(octets)

    return target


def quoted(octets: bytes) -> tuple[Quote, tuple[Certificate, ...]]:
    """What a quote says: without the padding after it, and without the line breaks of its certificates' PEM."""
    found = Quote.parse(octets)
    return replace(found, pck_chain=b"", trailing=b""), parse_chain(found.pck_chain, what="PCK chain")


def refused(
    verifier: object, evidence: Evidence, endorsements: Endorsements, genuine: bytes, octets: bytes,
    meaning: Callable[[bytes], object] = bytes,
) -> None:  # fmt: skip
    """A verifier under keys of today meets `octets`: whatever it makes of them, it accepts only what is genuine."""
    checks = Checklist()
    policy = verifier.policy(Fields({}, where="policy"))  # type: ignore[attr-defined]
    claims = verifier.verify(evidence, endorsements, NOW, policy, checks)  # type: ignore[attr-defined]
    verifier.appraise(claims, policy, checks)  # type: ignore[attr-defined]
    assert checks.all
    assert checks.failed or meaning(octets) == meaning(genuine), "made-up evidence was accepted"


def _collateral(octets: bytes) -> None:
    found = Collateral.parse(octets)
    assert Collateral.parse(json.dumps(found.serialise()).encode()) == found


def _log(octets: bytes) -> None:
    assert all(len(register) == 48 for register in replay(parse_log(octets)))


def _rim(octets: bytes) -> None:
    signed = SignedRim.parse(octets)
    if signed is not None:
        Rim.parse(signed.content)


TD_QUOTE, SGX_QUOTE = INTEL.quote(trust_domain()), INTEL.quote(enclave())
TD_COLLATERAL, SGX_COLLATERAL = INTEL.collateral(tdx=True), INTEL.collateral()
REPORT, TOKEN = NVIDIA.report(bytes(32)), CCA.token()
RIMS = {"driver_rim": NVIDIA.rim("driver"), "vbios_rim": NVIDIA.rim("vbios")}


def _td(octets: bytes) -> None:
    evidence = Evidence("tdx", {"quote": b64(octets), "cc_eventlog": None})
    endorsements = Endorsements({"collateral": TD_COLLATERAL})
    wanted_for(evidence)
    refused(TdxVerifier(intel_root=INTEL.root.certificate), evidence, endorsements, TD_QUOTE, octets, quoted)


def _enclave(octets: bytes) -> None:
    evidence, endorsements = Evidence("sgx", {"quote": b64(octets)}), Endorsements({"collateral": SGX_COLLATERAL})
    refused(SgxVerifier(intel_root=INTEL.root.certificate), evidence, endorsements, SGX_QUOTE, octets, quoted)


def _gpu(octets: bytes) -> None:
    device = {"evidence": b64(octets), "certificate": b64(NVIDIA.chain)}
    verifier = NvidiaVerifier(device_root=NVIDIA.root.certificate, rim_root=NVIDIA.rim_root.certificate)
    evidence = Evidence("nvidia", {"device_evidence_list": [device]})
    wanted_for(evidence)
    refused(verifier, evidence, Endorsements(RIMS), REPORT, octets)


def _realm(octets: bytes) -> None:
    evidence, endorsements = Evidence("cca", {"token": list(octets)}), Endorsements({"cpak": CCA.cpak})
    checks, verifier = Checklist(), CcaVerifier()
    policy = verifier.policy(Fields({}, where="policy"))
    claims = verifier.verify(evidence, endorsements, NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    genuine = Token.parse(TOKEN)
    found = Token.parse(octets)
    same = (found.platform.payload, found.realm.payload) == (genuine.platform.payload, genuine.realm.payload)
    assert checks.failed or same, "a made-up token was accepted"


def _entry(octets: bytes) -> None:
    try:
        value = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("not JSON") from error
    assert Entry.parse(Entry.parse(value).serialise()) == Entry.parse(value)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "quote": exact(Quote.parse),
    "pck-extension": reads(PckExtension.parse),
    "collateral": _collateral,
    "tcb-info": reads(TcbInfo.parse),
    "qe-identity": reads(QeIdentity.parse),
    "event-log": _log,
    "tdx": _td,
    "sgx": _enclave,
    "spdm-report": exact(SpdmReport.parse),
    "rim": _rim,
    "nvidia": _gpu,
    "ocsp": lambda octets: Lists.parse({"ocsp": octets}) and None,
    "cca-token": reads(Token.parse),
    "cca-platform": reads(PlatformClaims.parse),
    "cca-realm": lambda octets: RealmClaims.parse(octets).key() and None,
    "cca": _realm,
    "cpak": reads(parse_cpak),
    "pcs-answer": lambda octets: signed_member(octets, "tcbInfo") and None,
    "collateral-entry": _entry,
}


def one(target: Callable[[bytes], None], octets: bytes) -> None:
    """Run a target once; our own refusals are fine, everything else is a finding."""
    try:
        target(octets)
    except (EvidenceMalformed, MalformedInput, CollateralUnavailable):
        return


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs to begin with."""
    import cbor2
    from evidence.test_tdx_verifier import EVENTS, ccel

    document = json.loads(TD_COLLATERAL)
    log = json.dumps(EVENTS).encode()
    entry = {
        "name": "rim/x",
        "role": "driver_rim",
        "fetched": "2026-06-01T00:00:00Z",
        "octets": "AAAA",
        "context": ["AA=="],
    }
    answer = f'{{"tcbInfo":{document["tcb_info"]},"signature":"{document["tcb_info_signature"]}"}}'.encode()
    return {
        "quote": [TD_QUOTE, SGX_QUOTE, INTEL.quote(trust_domain(tee_tcb_svn2=bytes(16), mr_servicetd=bytes(48)))],
        "pck-extension": [sgx_extension(svns=(5,) * 16, pce_svn=10)],
        "collateral": [TD_COLLATERAL],
        "tcb-info": [document["tcb_info"].encode()],
        "qe-identity": [document["qe_identity"].encode()],
        "event-log": [log, ccel(EVENTS)],
        "tdx": [TD_QUOTE],
        "sgx": [SGX_QUOTE],
        "spdm-report": [REPORT],
        "rim": [RIMS["driver_rim"]],
        "nvidia": [REPORT],
        "ocsp": [NVIDIA.ocsp(NVIDIA.identity, NVIDIA.root)],
        "cca-token": [TOKEN],
        "cca-platform": [cbor2.dumps(CCA.platform())],
        "cca-realm": [cbor2.dumps(CCA.realm(bytes(64)))],
        "cca": [TOKEN],
        "cpak": [CCA.cpak],
        "pcs-answer": [answer],
        "collateral-entry": [json.dumps(entry).encode()],
    }[name]


def main() -> None:
    import atheris

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        longest = max(map(len, seeds(name))) * 2
        atheris.Setup([*sys.argv, f"-max_len={longest}", corpus], lambda octets: one(TARGETS[name], octets))
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print("\n".join(TARGETS))
        sys.exit(0 if "--list" in sys.argv else 2)
    import atheris

    # Coverage is seen only in modules that are imported under instrumentation, so all are imported again.
    with atheris.instrument_imports(include=["strongroom"]):
        for module in [each for each in sys.modules if each.split(".")[0] in ("strongroom", "doubles", "evidence")]:
            del sys.modules[module]
        from fuzz import fuzz_evidence_dcap_nvidia_cca as harness
    harness.main()
