"""Fuzz targets for certificates, CRLs, policies, tokens, Nitro documents, simulated evidence and the judge.

    python tests/fuzz/fuzz_evidence_judge.py TARGET [-max_total_time=120] [libFuzzer options]
    python tests/fuzz/fuzz_evidence_judge.py --list

Needs atheris. A target may raise nothing but our own errors; anything else is a finding, and so is made-up
evidence that a judge accepts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
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
from strongroom.evidence.simulated import SimulatedReport, SimulatedVerifier
from strongroom.evidence.types import Checklist, Endorsements, Evidence

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OURS = (EvidenceMalformed, EvidenceRefused, MalformedInput, ConfigurationInvalid)
VERIFIERS = {"simulated": SimulatedVerifier(), "aws-nitro": NitroVerifier(), "ear": EarVerifier()}


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda octets: parse(octets.decode("utf-8", "replace"))


def simulated(octets: bytes) -> None:
    report = SimulatedReport.parse(parse_json(octets, where="fuzz"))
    assert SimulatedReport.parse(report.serialise()) == report


def ear(octets: bytes) -> None:
    """A token against an authority that did not sign it: read, refused, never believed."""
    verifier, checks = VERIFIERS["ear"], Checklist()
    policy = Policy.parse(f"name = \"p\"\n[ear]\ntrusted_keys = '''{KEYS}'''\n", VERIFIERS).tees["ear"]
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
    "file": read_evidence,
    "judge": judged,
}


def one(target: Callable[[bytes], object], octets: bytes) -> None:
    """Run a target once; our own refusals are fine, everything else is a finding."""
    try:
        target(octets)
    except OURS:
        return


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
        "file": [json.dumps({"tee": "simulated", "evidence": simulated_body}).encode(), document],
        "judge": [json.dumps({"simulated": simulated_body, "aws-nitro": {"document": b64(document)}}).encode()],
    }[name]


def main() -> None:
    import tempfile

    import atheris

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup(
            [*sys.argv, "-max_len=8192", "-print_final_stats=1", corpus], lambda octets: one(TARGETS[name], octets)
        )
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
