"""Fuzz targets for the parsers and verifiers of SEV-SNP, Azure and TPM evidence.

    python tests/fuzz/fuzz_evidence_snp_tpm.py TARGET [-max_total_time=120] [libFuzzer options]
    python tests/fuzz/fuzz_evidence_snp_tpm.py --list

Needs atheris. A target may raise nothing but our own errors for input that cannot be read; anything else is
a finding, and so are parsers whose `serialise` does not give the input back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from strongroom.attest.snp import certificate_table
from strongroom.encoding import Fields, b64
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.azure import AzureSnpVerifier, AzureTdxVerifier
from strongroom.evidence.azure_hcl import HclReport, RuntimeData
from strongroom.evidence.certificates import parse_certificate
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.snp_certificate import SnpCertificate
from strongroom.evidence.snp_report import SnpReport, from_serde
from strongroom.evidence.tpm import TpmVerifier
from strongroom.evidence.tpm_certificate import GceInstance
from strongroom.evidence.tpm_credential import Challenge, Credential
from strongroom.evidence.tpm_event_log import EventLog
from strongroom.evidence.tpm_structures import Quote, TpmPublic, TpmSignature
from strongroom.evidence.types import Checklist, Endorsements, Evidence

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def exact(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def target(octets: bytes) -> None:
        assert parse(octets).serialise() == octets  # type: ignore[attr-defined]

    return target


def event_log(octets: bytes) -> None:
    log = EventLog.parse(octets)
    for bank in log.banks:
        log.replay(bank)
        log.secure_boot(bank)


def serde(octets: bytes) -> None:
    SnpReport.parse(from_serde(_json(octets)))


def _json(octets: bytes) -> object:
    try:
        return json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("not JSON") from error


def certificate(octets: bytes) -> None:
    SnpCertificate.parse(octets, kind="VCEK")


def body(verifier: object, tee: str) -> Callable[[bytes], None]:
    def target(octets: bytes) -> None:
        value = _json(octets)
        if isinstance(value, dict):
            policy, checks = verifier.policy(Fields({}, where=tee)), Checklist()  # type: ignore[attr-defined]
            claims = verifier.verify(Evidence(tee, value), Endorsements(), NOW, policy, checks)  # type: ignore[attr-defined]
            verifier.appraise(claims, policy, checks)  # type: ignore[attr-defined]
            assert checks.failed, "made-up evidence was accepted"

    return target


def quoted(octets: bytes) -> None:
    """Three structures in one input, so that the verifier's own code is reached."""
    size = 1 + (octets[0] if octets else 0)
    parts = (octets[1:size], octets[size : size + 262], octets[size + 262 :])
    quote = {"message": b64(parts[0]), "signature": b64(parts[1]), "pcrs": {"0": "00" * 32}}
    body(TpmVerifier(), "tpm")(json.dumps({"ak_pub": b64(parts[2]), "quotes": {"sha256": quote}}).encode())


def talk(octets: bytes) -> None:
    """What broker and attester say to each other before a quote."""
    value = _json(octets)
    for read in (Credential.parse, Challenge.announced):
        try:
            read(value)
        except (EvidenceMalformed, MalformedInput):
            continue


def instance(octets: bytes) -> None:
    GceInstance.read(parse_certificate(octets, what="AK certificate"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "snp-report": exact(SnpReport.parse),
    "snp-serde": serde,
    "snp-certificate": certificate,
    "snp-body": body(SnpVerifier(), "snp"),
    "hcl-report": exact(HclReport.parse),
    "runtime-data": lambda octets: RuntimeData.parse(octets) and None,
    "azure-body": body(AzureSnpVerifier(), "az-snp-vtpm"),
    "azure-tdx-body": body(AzureTdxVerifier(), "az-tdx-vtpm"),
    "certificate-table": lambda octets: certificate_table(octets) and None,
    "tpm-talk": talk,
    "gce-instance": instance,
    "tpm-public": exact(TpmPublic.parse),
    "tpm-quote": exact(Quote.parse),
    "tpm-signature": exact(TpmSignature.parse),
    "tpm-event-log": event_log,
    "tpm-body": body(TpmVerifier(), "tpm"),
    "tpm-quoted": quoted,
}


def one(target: Callable[[bytes], None], octets: bytes) -> None:
    """Run a target once; our own refusals are fine, everything else is a finding."""
    try:
        target(octets)
    except (EvidenceMalformed, MalformedInput):
        return


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs to begin with; without them a fuzzer spends its life on the first length field."""
    from doubles.amd_keys import amd_keys
    from doubles.azure_guest import AzureGuest
    from doubles.dcap_platform import PretendIntel, trust_domain
    from doubles.paper_tpm import ECDSA, PaperTpm
    from doubles.tee_devices import certificate_table as host_table
    from strongroom.evidence.snp_report import to_serde

    td_quote = PretendIntel().quote(trust_domain())
    guest, tpms = AzureGuest(), [PaperTpm(), PaperTpm(scheme=ECDSA)]
    chips = [amd_keys(product).chip() for product in ("Milan", "Turin")]
    quotes = [tpm.body().quotes["sha256"] for tpm in tpms]
    header = bytes(4) + b"\3\0\0\0" + bytes(20)
    spec = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2\1\0\0\0\x0b\0\x20\0\0"
    log = header + len(spec).to_bytes(4, "little") + spec
    entry = b"\4\0\0\0\x0d\0\0\0\1\0\0\0\x0b\0" + b"\7" * 32 + b"\2\0\0\0ok"
    message = quotes[0].message or b""
    three = bytes((len(message),)) + message + (quotes[0].signature or b"") + tpms[0].public.serialise()
    return {
        "snp-report": [chip.report().serialise() for chip in chips],
        "snp-serde": [json.dumps(to_serde(chip.report())).encode() for chip in chips],
        "snp-certificate": [chip.certificate() for chip in chips],
        "snp-body": [json.dumps({"report": b64(chip.report().serialise())}).encode() for chip in chips],
        "hcl-report": [guest.hcl().serialise()],
        "runtime-data": [guest.runtime_data],
        "azure-body": [json.dumps(dict(each.body)).encode() for each in (guest.evidence(), guest.protocol())],
        "azure-tdx-body": [json.dumps({**guest.evidence().body, "quote": b64(td_quote)}).encode()],
        "certificate-table": [b"", host_table({"VCEK": chips[0].certificate(), "ASK": b"x" * 40})],
        "tpm-talk": _talk(tpms[0]),
        "gce-instance": [_instance()],
        "tpm-public": [tpm.public.serialise() for tpm in tpms],
        "tpm-quote": [tpm.quote().serialise() for tpm in tpms],
        "tpm-signature": [quote.signature or b"" for quote in quotes],
        "tpm-event-log": [log, log + entry],
        "tpm-body": [json.dumps(dict(tpm.evidence().body)).encode() for tpm in tpms],
        "tpm-quoted": [three],
    }[name]


def _talk(tpm: object) -> list[bytes]:
    from doubles.paper_tpm import der, maker, rsa_key

    ek_cert, ak_pub = der(maker().certificate(rsa_key(2048, 4))), tpm.public.serialise()  # type: ignore[attr-defined]
    announced = {"ek_cert": b64(ek_cert), "ak_pub": b64(ak_pub)}
    return [json.dumps(each).encode() for each in (announced, Challenge.make(ek_cert, ak_pub).credential.serialise())]


def _instance() -> bytes:
    """A certificate with Google's extension: zone, project number, project, instance, its name."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from evidence.pki import Authority

    texts = [b"\x0c" + bytes((len(each),)) + each for each in (b"zone-a", b"project", b"name")]
    inner = texts[0] + b"\2\2\x30\x39" + texts[1] + b"\2\1\7" + texts[2]
    oid = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.1.21")
    extension = x509.UnrecognizedExtension(oid, b"\x30" + bytes((len(inner),)) + inner)
    return Authority.root(extensions=((extension, False),)).certificate.public_bytes(Encoding.DER)


def main() -> None:
    import tempfile

    import atheris

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(seed)
        longest = max(8192, 2 * max(map(len, seeds(name))))
        options = [*sys.argv, f"-max_len={longest}", "-print_final_stats=1", corpus]
        atheris.Setup(options, lambda octets: one(TARGETS[name], octets))
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print("\n".join(TARGETS))
        sys.exit(0 if "--list" in sys.argv else 2)
    # Coverage is seen only in modules that are imported under instrumentation, so all are imported again.
    import atheris

    with atheris.instrument_imports(include=["strongroom"]):
        for module in [each for each in sys.modules if each.startswith("strongroom")]:
            del sys.modules[module]
        from fuzz import fuzz_evidence_snp_tpm as harness
    harness.main()
