"""Verified releases per second of a broker, beside the floors that signatures and the disk set.

    python tests/benchmarks/bench_broker.py [COUNT]

One thread, no HTTP: `auth`, `attest` with SNP evidence (a doubled chip, full verification) and `resource`, each with
its audit entry on disk. Two floors in the same run: what the cryptography of one handshake costs alone (two RSA
and one P-384 verification of the evidence, a P-256 pair of the token, two signatures under the log), and two
synchronous writes, one for each audit entry. Two hundred keepers at once over HTTP: tests/broker/test_broker_load.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.test_broker_load import APPRAISAL, SnpGuest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from doubles.amd_keys import amd_keys
from strongroom.broker import directory
from strongroom.broker.document import ModelKeyDocument, model_key_name
from strongroom.broker.jwe import TeeKeyPair
from strongroom.broker.protocol import Attestation, document_digest, primary_document
from strongroom.broker.serve import set_policies
from strongroom.evidence.snp import SnpVerifier
from strongroom.evidence.types import Endorsements
from strongroom.hookspecs import VerifierOffer
from strongroom.keys import ArchiveDigest, ModelKey
from strongroom.plugins import Plugins, Verifiers


def floor(line, count: int) -> float:
    """Seconds a handshake of the signatures alone."""
    ask, ark = line.issuers("Milan", "VCEK")
    leaf = x509.load_der_x509_certificate(SnpGuest.certificate)
    chip, ours, notes = (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256R1()),
        Ed25519PrivateKey.generate(),
    )
    message, digest = bytes(672), ec.ECDSA(hashes.SHA384())
    signed = chip.sign(message, digest)
    begun = time.perf_counter()
    for _ in range(count):
        leaf.verify_directly_issued_by(ask)
        ask.verify_directly_issued_by(ark)
        chip.public_key().verify(signed, message, digest)
        ours.sign(message, ec.ECDSA(hashes.SHA256()))
        ours.public_key().verify(ours.sign(message, ec.ECDSA(hashes.SHA256())), message, ec.ECDSA(hashes.SHA256()))
        for _ in range(2):
            notes.sign(message)
    return (time.perf_counter() - begun) / count


def durable(folder: Path, count: int) -> float:
    """Seconds of two synchronous writes of a page."""
    with (folder / "page").open("wb", buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(2 * count):
            file.write(bytes(4096))
            os.fsync(file.fileno())
        return (time.perf_counter() - begun) / count


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    line = amd_keys("Milan")
    SnpGuest.chip = line.chip()
    SnpGuest.certificate = SnpGuest.chip.certificate()
    plugins = Plugins.load()
    verifier = SnpVerifier(issuers=line.issuers)
    plugins._verifiers = Verifiers({"snp": VerifierOffer("snp", lambda: verifier)})
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(None):
        folder = Path(name)
        directory.init(folder / "broker")
        (folder / "appraisal.toml").write_text(APPRAISAL)
        lists = Endorsements({"crl": line.ark.crl(at=datetime.now(UTC))})
        broker = directory.open_broker(folder / "broker", plugins=plugins, endorsements=lambda evidence, policy: lists)
        set_policies(broker, folder / "appraisal.toml", "measured")
        archive = ArchiveDigest(b"\1" * 32)
        resource = model_key_name("acme", "digits", 1, archive)
        document = ModelKeyDocument(archive, ModelKey(b"\2" * 32), version=1, lease_s=900).serialise()
        broker.store.put_resource(resource, document, at=0, archive=str(archive), version=1)
        keys, prepared = TeeKeyPair.generate(), []
        for _ in range(count):
            session = broker.handshakes.auth(b'{"version":"0.4.0","tee":"snp","extra-params":""}')
            digest = document_digest(primary_document(session.challenge.nonce, keys.public, ""))
            evidence = SnpGuest().evidence(digest)
            body = Attestation(session.challenge.nonce, keys.public, evidence.body).serialise()
            prepared.append((session.id, json.dumps(body).encode()))
        busy, begun = time.process_time(), time.perf_counter()
        for session_id, body in prepared:
            broker.handshakes.attest(session_id, body)
        attested = time.perf_counter()
        for session_id, _ in prepared:
            broker.resource(session_id, None, resource)
        released, busy = time.perf_counter(), time.process_time() - busy
        broker.close()
        synchronous = durable(folder, count)
    least = floor(line, count)
    whole = (released - begun) / count
    print(f"attest     {(attested - begun) / count * 1e3:6.2f} ms")
    print(f"release    {(released - attested) / count * 1e3:6.2f} ms")
    print(f"whole      {whole * 1e3:6.2f} ms, {1 / whole:.0f} verified releases/s on one thread")
    print(f"processor  {busy / count * 1e3:6.2f} ms of that in the broker's own process")
    print(f"signatures {least * 1e3:6.2f} ms, {1 / least:.0f}/s: the floor; the whole is {whole / least:.1f} times it")
    print(f"disk       {synchronous * 1e3:6.2f} ms: two synchronous writes, one for each audit entry")
    return 0


if __name__ == "__main__":
    sys.exit(main())
