"""Fuzz targets for certificates, CRLs, policies, tokens, Nitro documents, files of any kind, and the judge.

    python tests/fuzz/fuzz_evidence_judge.py TARGET [-max_total_time=120] [libFuzzer options]
    python tests/fuzz/fuzz_evidence_judge.py --list

Needs atheris. A target may raise nothing but our own errors; anything else is a finding, and so is made-up
evidence that a judge accepts. The judge itself takes a verifier's exception for a no and only logs it: here that is
a finding too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from strongroom.encoding import b64, parse_json
from strongroom.errors import ConfigurationInvalid, EvidenceMalformed, EvidenceRefused, MalformedInput
from strongroom.evidence.certificates import parse_certificate, parse_chain
from strongroom.evidence.cose import Sign1
from strongroom.evidence.crl import parse_crl
from strongroom.evidence.ear import EarVerifier
from strongroom.evidence.judge import Presented, judge_composite
from strongroom.evidence.jws import CompactJws, parse_jwks
from strongroom.evidence.nitro import AttestationDocument, NitroVerifier
from strongroom.evidence.policy import Policy
from strongroom.evidence.presentation import read_evidence
from strongroom.evidence.reference import reference_policy
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.told import Told
from strongroom.evidence.types import Checklist, Endorsements, Evidence
from strongroom.plugins import Plugins

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OURS = (EvidenceMalformed, EvidenceRefused, MalformedInput, ConfigurationInvalid)
VERIFIERS = {"simulated": SimulatedVerifier(), "aws-nitro": NitroVerifier(), "ear": EarVerifier()}
EVERYBODY = Plugins().verifiers()


class Finding(logging.Handler):
    """Turns the log line of a verifier that raised into what it is."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(record.getMessage()) from (record.exc_info or (None, None))[1]


@contextlib.contextmanager
def findings() -> Iterator[None]:
    """For as long as a target runs, and not for other tests of the same process."""
    log, handler = logging.getLogger("strongroom.evidence.judge"), Finding(logging.ERROR)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda octets: parse(octets.decode("utf-8", "replace"))


def simulated(octets: bytes) -> None:
    report = SimulatedReport.parse(parse_json(octets, where="fuzz"))
    assert SimulatedReport.parse(report.serialise()) == report


def ear(octets: bytes) -> None:
    """A token against an authority that did not sign it: read, refused, never believed."""
    verifier, checks = VERIFIERS["ear"], Checklist()
    policy = Policy.parse(
        f"name = \"p\"\n[ear]\nmax_age = 60\nissuers = [\"x\"]\ntrusted_keys = '''{KEYS}'''\n", VERIFIERS
    ).tees["ear"]
    token = octets.decode("latin-1")
    claims = verifier.verify(Evidence("ear", {"token": token}), Endorsements(), NOW, policy, checks)
    verifier.appraise(claims, policy, checks)
    assert checks.failed, "a made-up token was believed"


def judged(octets: bytes) -> None:
    """Any JSON as evidence and devices before the judge: only a refusal may come out."""
    value = parse_json(octets, where="fuzz")
    if not isinstance(value, dict):
        return
    policy = Policy.parse('name = "p"\n[aws-nitro]\n[simulated]\nprotects_nothing = true\nmeasurements = []', VERIFIERS)
    presented = [Presented(Evidence(str(tee), body)) for tee, body in value.items()]
    for primary in presented:
        judge_composite(
            primary, presented[1:], binding=bytes(48), device_binding=bytes(48), policy=policy, now=NOW,
            verifiers=VERIFIERS,
        )  # fmt: skip
        raise AssertionError("made-up evidence was accepted")


def anybodys(octets: bytes) -> None:
    """Any JSON as evidence of every TEE there is, before the strictest policy for all of them."""
    value = parse_json(octets, where="fuzz")
    if not isinstance(value, dict):
        return
    for tee, body in value.items():
        presented = Presented(Evidence(str(tee), body if isinstance(body, dict) else {"": body}))
        judge_composite(
            presented, (), binding=bytes(48), device_binding=b"", policy=STRICT, now=NOW, verifiers=EVERYBODY
        )
        raise AssertionError("made-up evidence was accepted")


def told(octets: bytes) -> None:
    """A verdict in a file: whatever it says, one without checks or with a failed one is no acceptance."""
    found = Told.parse(octets)
    assert found is None or not found.accepted or (found.checks and not found.failed)


def measured(octets: bytes) -> None:
    """What `strongroom measure FILE` does; what it prints is a policy."""
    policy = reference_policy(read_evidence(octets), EVERYBODY, name="fuzz")
    assert Policy.parse(policy.toml(), EVERYBODY).tees


def _strict() -> Policy:
    tables = dict.fromkeys(EVERYBODY, "")
    tables["simulated"] = "protects_nothing = true\nmeasurements = []"
    tables["ear"] = f"trusted_keys = '''{KEYS}'''"
    return Policy.parse('name = "p"\n' + "".join(f"[{tee}]\n{table}\n" for tee, table in tables.items()), EVERYBODY)


KEYS = json.dumps(
    {
        "keys": [
            {
                "kid": "one",
                "kty": "EC",
                "crv": "P-256",
                "x": "OaWCXUFYvEc_KHEazr-mFnmG9PdJYTZEz2ZpJd80UsM",
                "y": "FwrVhmfWMhOfmJ7qw_cuLx0tcIdI0q3yGIb13bTzixs",
            }
        ]
    }
)

STRICT = _strict()
TARGETS: dict[str, Callable[[bytes], object]] = {
    "certificate": lambda octets: parse_certificate(octets, what="fuzz"),
    "chain": lambda octets: parse_chain(octets, what="fuzz"),
    "crl": lambda octets: parse_crl(octets, what="fuzz"),
    "cose": lambda octets: Sign1.parse(octets, what="fuzz"),
    "nitro-document": AttestationDocument.parse,
    "jws": text(CompactJws.parse),
    "jwks": text(parse_jwks),
    "ear": ear,
    "simulated": simulated,
    "policy": text(lambda each: Policy.parse(each, VERIFIERS)),
    "policy-tables": text(lambda each: Policy.parse(each, EVERYBODY)),
    "file": read_evidence,
    "measure": measured,
    "told": told,
    "judge": judged,
    "bodies": anybodys,
}


def one(target: Callable[[bytes], object], octets: bytes) -> None:
    """Run a target once; our own refusals are fine, everything else is a finding."""
    with contextlib.suppress(*OURS), findings():
        target(octets)


def seeds(name: str) -> list[bytes]:
    """Well-formed inputs to begin with."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from doubles.tee_devices import nitro_document
    from evidence.pki import NOW as AT
    from evidence.pki import Authority
    from strongroom.encoding import b64url

    root = Authority.root()
    leaf = root.issue("Leaf", ca=False, usage=("digital_signature",))
    crl = root.crl(leaf.certificate)
    document = nitro_document(root, leaf, (), bytes(64), at=AT)
    simulated_body = SimulatedReport.sign(bytes(32), bytes(64), {"a": [1, None]}).serialise()
    header = {"alg": "ES256", "kid": "one"}
    payload = {"iat": 1, "exp": 2, "submods": {"cpu0": {"ear.status": "affirming", "x": {"y": [1]}}}}
    token = ".".join(b64url(json.dumps(each).encode()) for each in (header, payload)) + "." + b64url(bytes(64))
    bodies = _bodies()
    tables = (
        '[snp]\nmeasurements = []\nmin_firmware = "1.55.22"\nproducts = ["Milan"]\n[snp.min_tcb]\nsnp = 3\n',
        '[tdx]\nprofile = "azure"\nrtmr1 = []\nallowed_tcb_statuses = ["UpToDate"]\naccepted_advisories = []\n',
        '[sgx]\nisv_prod_ids = [1, 2]\nmin_isv_svn = 3\n[cca]\nfirmware = []\n[nvidia]\nrequired_rims = ["driver"]\n',
        '[tpm]\nak_trust = "pinned"\npinned_aks = []\nlaunch = { configuration = [] }\npcrs = { "4" = [] }\n',
        '[az-snp-vtpm]\nvm_ids = ["x"]\npcrs = { "9" = [] }\n[aws-nitro]\nmax_age = 3\npcrs = { "0" = [] }\n',
    )
    check = {"name": "a", "word": "tcb", "ok": True, "expected": "x", "found": "y", "source": "", "hint": ""}
    told = {"accepted": True, "policy": "p", "checks": [check], "claims": {"a": {"value": 1, "provenance": "hardware"}}}
    toml = 'name = "p"\nmax_age = 3\n[simulated]\nprotects_nothing = true\nany_measurement = true\n[devices]\ngpu = 1\n'
    return {
        "certificate": [leaf.certificate.public_bytes(encoding) for encoding in (Encoding.DER, Encoding.PEM)],
        "chain": [b"".join(each.certificate.public_bytes(Encoding.PEM) for each in (leaf, root))],
        "crl": [crl.public_bytes(encoding) for encoding in (Encoding.DER, Encoding.PEM)],
        "cose": [document],
        "nitro-document": [Sign1.parse(document, what="seed").payload],
        "jws": [token.encode()],
        "jwks": [KEYS.encode()],
        "ear": [token.encode()],
        "simulated": [json.dumps(simulated_body).encode()],
        "policy": [toml.encode()],
        "policy-tables": [f'name = "p"\n{table}'.encode() for table in tables],
        "file": [json.dumps({"tee": "simulated", "evidence": simulated_body}).encode(), document],
        "measure": [json.dumps({"tee": tee, "evidence": body}).encode() for tee, body in bodies.items()],
        "told": [json.dumps(each).encode() for each in (told, {"submodules": {"cpu0": told}})],
        "bodies": [json.dumps({tee: body}).encode() for tee, body in bodies.items()],
        "judge": [json.dumps({"simulated": simulated_body, "aws-nitro": {"document": b64(document)}}).encode()],
    }[name]


def _bodies() -> dict[str, dict[str, object]]:
    """A well-formed body of every TEE that one fits into a seed for."""
    from doubles.amd_keys import amd_keys
    from doubles.azure_guest import AzureGuest
    from doubles.cca_platform import PretendCca
    from doubles.dcap_platform import PretendIntel, enclave, trust_domain
    from doubles.nvidia_device import PretendNvidia
    from doubles.paper_tpm import PaperTpm

    intel, nvidia, guest = PretendIntel(), PretendNvidia(), AzureGuest()
    device = {"arch": "", "uuid": "", "evidence": b64(nvidia.report(bytes(32))), "certificate": b64(nvidia.chain)}
    return {
        "snp": {"report": b64(amd_keys("Milan").chip().report().serialise())},
        "tdx": {"quote": b64(intel.quote(trust_domain())), "cc_eventlog": None},
        "sgx": {"quote": b64(intel.quote(enclave()))},
        "az-snp-vtpm": dict(guest.evidence().body),
        "cca": {"token": list(PretendCca().token(bytes(64)))},
        "nvidia": {"device_evidence_list": [device]},
        "tpm": dict(PaperTpm().evidence().body),
    }


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
        from fuzz import fuzz_evidence_judge as harness
    harness.main()
