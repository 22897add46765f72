"""The broker's decisions: challenge, judge, and release a key, each step only after the one before.

    evidence.judge → EAR → release policy (Rego) → revocations, versions, limits → vetoes → audit → JWE

A key is encrypted for the attested TEE before the audit entry is committed, and leaves after. What went
wrong is told in full to the log and the audit log, and to the peer by its class alone (`Refused`).
HTTP is `http`'s business; this module can be driven without a socket.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.broker import epochs, leases
from strongroom.broker.admin import key_id_of
from strongroom.broker.audit import AuditLog
from strongroom.broker.document import ModelKeyDocument, is_model_key
from strongroom.broker.epochs import EpochSeed
from strongroom.broker.initdata import check_init_data
from strongroom.broker.jwe import Jwe, check_tee_key, seal_to
from strongroom.broker.protocol import (
    ADDITION,
    OWN_TEES,
    STOCK_TEES,
    Attestation,
    Challenge,
    Request,
    Resource,
    device_document,
    document_digest,
    primary_document,
)
from strongroom.broker.refusals import Refused
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.sessions import Session, Sessions
from strongroom.broker.statement import KeeperStatement
from strongroom.broker.store import Store
from strongroom.broker.tokens import TokenSigner, tee_key_of
from strongroom.encoding import b64, canonical_json
from strongroom.errors import (
    AuditError,
    EvidenceMalformed,
    EvidenceRefused,
    MalformedInput,
    ProtocolMismatch,
    ReleaseError,
    StoreError,
)
from strongroom.evidence.ear import ear_claims
from strongroom.evidence.judge import Presented, Verdict, judge_composite
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import ChallengingVerifier, Check, Endorsements, Evidence, SessionChallenge
from strongroom.keys import ArchiveDigest
from strongroom.plugins import Plugins

log = logging.getLogger("strongroom.broker")

_CHECKS_SHOWN = 32
_TEXT_SHOWN = 400


@dataclass(slots=True)
class Policies:
    """What decides. Both are None until somebody sets them, and then nothing is released."""

    appraisal: Policy | None = None
    release: ReleasePolicy | None = None


@dataclass(slots=True)
class Counters:
    """What `/metrics` shows: decisions by kind, nothing that names a peer or a key."""

    values: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, what: str, outcome: str) -> None:
        """One more."""
        self.values[what, outcome] = self.values.get((what, outcome), 0) + 1


def no_endorsements(evidence: Evidence) -> Endorsements:
    """Evidence that brings its own certificates needs no more."""
    return Endorsements()


class Broker:
    """One broker over one store. Every method may be called from many threads."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        signer: TokenSigner,
        *,
        identity: Ed25519PrivateKey,
        plugins: Plugins,
        policies: Policies | None = None,
        endorsements: Callable[[Evidence], Endorsements] = no_endorsements,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = key_id_of(identity.public_key())
        self._identity = identity
        self.store = store
        self.audit = audit
        self.signer = signer
        self.plugins = plugins
        self.policies = policies or Policies()
        self.counters = Counters()
        self.clock = clock
        self.sessions = Sessions(steady)
        self._endorsements = endorsements
        self._trouble = ""

    # -- POST auth ----------------------------------------------------------------

    def auth(self, body: bytes) -> Session:
        """Open a session with a fresh challenge; raises `Refused`."""
        try:
            request = Request.parse(body)
        except ProtocolMismatch as error:
            raise Refused.auth(str(error)) from error
        except MalformedInput as error:
            raise Refused.auth("deserialize Request") from error
        if request.tee not in STOCK_TEES | OWN_TEES | set(self.plugins.verifiers()):
            raise Refused.auth("deserialize Request")
        nonce = b64(secrets.token_bytes(32))
        extra, proof = self._additions(request)
        session = self.sessions.open(request, Challenge(nonce, extra))
        session.proof = proof
        return session

    def _additions(self, request: Request) -> tuple[Any, SessionChallenge | None]:
        """(extra-params, what we challenge the attester with beside the nonce).

        A stock client gets the empty string that a Trustee sends; only who announced itself as ours gets more.
        """
        announced = request.extra_params.get(ADDITION) if isinstance(request.extra_params, Mapping) else None
        if not isinstance(announced, Mapping):
            return "", None
        own: dict[str, Any] = {"version": 1, "additional-evidence": [ADDITION]}
        proof = None
        if request.tee in announced and request.tee in self.plugins.verifiers():
            verifier = self.plugins.verifiers()[request.tee]
            if isinstance(verifier, ChallengingVerifier):
                try:
                    proof = verifier.challenge(announced[request.tee])
                except (MalformedInput, EvidenceMalformed) as error:
                    raise Refused.auth(f"no challenge can be made for this {request.tee}") from error
                own[request.tee] = dict(proof.offer())
        return {ADDITION: own}, proof

    # -- POST attest ----------------------------------------------------------------

    def attest(self, session_id: str | None, body: bytes) -> Session:
        """Judge the evidence of a session; its `token` is set after that. Raises `Refused`.

        A session that was attested already keeps its token, whatever comes now (section 4).
        """
        try:
            attestation = Attestation.parse(body)
        except MalformedInput as error:
            raise Refused.attest(f"the attestation cannot be read: {error}") from error
        session = self.sessions.find(session_id)
        if session is None:
            raise Refused.attest("no session of that id, or it has expired")
        with session.lock:
            if session.token is None:
                self._judge(session, attestation)
        return session

    def _judge(self, session: Session, attestation: Attestation) -> None:
        if attestation.nonce != session.challenge.nonce:
            raise Refused.attest("the nonce is not this session's")
        presented = canonical_json({"p": _digestible(attestation.primary), "a": attestation.additional})
        session.evidence_digest = hashlib.sha256(presented).hexdigest()
        entry = {"event": "attest", "tee": session.request.tee, "evidence": session.evidence_digest}
        try:
            check_tee_key(attestation.tee_key)
            statement, devices = self._devices(attestation)
            verdict = self._verdict(session, attestation, devices)
            init_data_claims = None
            if attestation.init_data is not None:
                init_data_claims = check_init_data(attestation.init_data, verdict.claims)
        except EvidenceRefused as error:
            failed = tuple(check for check in error.checks if isinstance(check, Check) and not check.ok)
            self._refuse(entry, str(error), failed)
            raise Refused.attest(str(error), checks=error.checks) from error
        except (MalformedInput, EvidenceMalformed) as error:
            self._refuse(entry, str(error), ())
            raise Refused.attest(str(error)) from error
        runtime = {"nonce": attestation.nonce, "tee-pubkey": attestation.tee_key.serialise()}
        claims = ear_claims(
            verdict,
            runtime_data_claims=runtime,
            device_runtime_data_claims=runtime,
            init_data=attestation.init_data,
            init_data_claims=init_data_claims,
        )
        if statement is not None:
            session.keeper = statement.keeper.hex()
            claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"][ADDITION] = statement.serialise()
        token = self.signer.sign(claims, now=self.clock())
        named = {"policy": verdict.policy.name, "policy_digest": verdict.policy.digest.hex(), "keeper": session.keeper}
        self.record(entry | named | {"decision": "granted"})
        self.counters.count("attest", "granted")
        self.sessions.attested(session, token, verdict)

    def _devices(self, attestation: Attestation) -> tuple[KeeperStatement | None, tuple[Evidence, ...]]:
        """The keeper's own statement, and what is evidence about devices."""
        devices = attestation.devices()
        own = [each for each in devices if each.tee == ADDITION]
        statement = KeeperStatement.parse(own[0].body) if own else None
        return statement, tuple(each for each in devices if each.tee != ADDITION)

    def _verdict(self, session: Session, attestation: Attestation, devices: tuple[Evidence, ...]) -> Verdict:
        primary = Evidence(session.request.tee, attestation.primary)
        document = primary_document(attestation.nonce, attestation.tee_key, attestation.additional)
        verifiers = self.plugins.verifiers()
        proof, session.proof = session.proof, None  # one answer, right or wrong
        if proof is not None:
            try:
                # A ChainMap, since unpacking would load every verifier there is.
                verifiers = ChainMap({session.request.tee: proof.verifier(primary)}, verifiers)  # type: ignore[arg-type]
            except EvidenceMalformed as error:
                raise MalformedInput(str(error)) from error
        return judge_composite(
            Presented(primary, self._endorsements(primary)),
            [Presented(each, self._endorsements(each)) for each in devices],
            binding=document_digest(document),
            device_binding=document_digest(device_document(attestation.nonce, attestation.tee_key)),
            policy=self.policies.appraisal,
            now=datetime.fromtimestamp(self.clock(), UTC),
            verifiers=verifiers,
        )

    # -- GET resource -----------------------------------------------------------------

    def authorised(self, session_id: str | None, bearer: str | None) -> tuple[Session, dict[str, Any]]:
        """The attested session behind a cookie or else a bearer token, with its verified claims."""
        session = self.sessions.find(session_id)
        token = session.token if session is not None and session.token is not None else bearer
        if token is None:
            raise Refused.no_token("no attested session and no bearer token")
        claims = self.signer.verify(token, now=self.clock())
        judged = self.sessions.of_token(token)
        if judged is None or judged.verdict is None:
            # A release takes a verdict, not only a signature: tokens do not outlive our memory of them.
            raise Refused.bad_token("the session of this token has ended")
        return judged, claims

    def resource(self, session_id: str | None, bearer: str | None, name: Resource) -> Jwe:
        """Release a resource to an attested TEE, or raise `Refused`."""
        return self.release(session_id, bearer, "resource", name, self._document)

    def release(
        self,
        session_id: str | None,
        bearer: str | None,
        plugin: str,
        name: Resource,
        produce: Callable[[Session, Resource, dict[str, Any]], bytes],
        query: Mapping[str, str] | None = None,
    ) -> Jwe:
        """Decide about one request of `plugin`, and encrypt what `produce` makes of it.

        `produce` runs inside the transaction of the audit entry and may add facts to that entry.
        """
        session, claims = self.authorised(session_id, bearer)
        entry: dict[str, Any] = {
            "event": "release" if plugin == "resource" else "epoch",
            "resource": str(name),
            "keeper": session.keeper,
            "evidence": session.evidence_digest,
            "tee": session.request.tee,
            "submodules": _summary(claims),
        }
        try:
            self._allow(session, claims, plugin, name, query or {})
            tee_key = tee_key_of(claims)
            with self.store.transaction():
                jwe = seal_to(tee_key, produce(session, name, entry))
                self.record(entry | {"decision": "granted"})
        except Refused as refusal:
            self._refuse(entry, str(refusal), ())
            raise
        except (StoreError, AuditError) as error:
            log.error("release of %s refused, our own store failed: %s", name, error)
            self.counters.count("release", "failed")
            raise Refused.plugin(str(error)) from error
        self.counters.count("release", "granted")
        return jwe

    def _allow(
        self, session: Session, claims: Mapping[str, Any], plugin: str, name: Resource, query: Mapping[str, str]
    ) -> None:
        if self.policies.release is None:
            raise Refused.policy("no release policy is set, so nothing is released")
        facts = self.store.resource_facts(name)
        data = {"plugin": plugin, "resource-path": list(name), "query": dict(query)}
        decision = self.policies.release.decide(claims, data)
        if not decision.granted:
            raise Refused.policy(decision.reason)
        if facts is None:
            raise Refused.plugin(f"there is no resource {name}")
        if session.verdict is None:
            raise Refused.bad_token("this session was never judged")
        leases.check_standing(self.store, session, name, facts)
        context = {"tenant": name.repository, "version": facts[1], "keeper": session.keeper}
        denials = self.plugins.vetoes(session.verdict, str(name), context)
        if denials:
            raise Refused.policy("; ".join(f"{plugin}: {denial.reason}" for plugin, denial in denials))

    def _document(self, session: Session, name: Resource, entry: dict[str, Any]) -> bytes:
        stored = self.store.resource(name)
        if stored is None:
            raise Refused.plugin(f"there is no resource {name}")
        if not is_model_key(stored):
            return stored
        document = ModelKeyDocument.parse(stored)
        lease = leases.grant(self.store, session, name, lease_s=document.lease_s, now=int(self.clock()))
        entry |= {"archive": str(document.archive), "lease": lease.id, "lease_s": lease.seconds}
        return document.released(lease=lease.id, lease_s=lease.seconds, broker_time=lease.at).serialise()

    # -- GET strongroom/epoch ---------------------------------------------------------

    def epoch(self, session_id: str | None, bearer: str | None, name: Resource, query: Mapping[str, str]) -> Jwe:
        """Release an epoch seed of an archive to an attested TEE, or raise `Refused`."""
        asked = query.get("epoch", "")
        if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise Refused.plugin("epoch is a number")

        def produce(session: Session, name: Resource, entry: dict[str, Any]) -> bytes:
            archive = (self.store.resource_facts(name) or (None,))[0]
            if archive is None:
                raise Refused.plugin(f"{name} is no model key")
            now = self.clock()
            epoch = int(asked) if asked else epochs.current(now)
            seed = epochs.seed_of(self.store, name, epoch, now)
            entry |= {"archive": archive, "epoch": epoch}
            return EpochSeed.make(self._identity, ArchiveDigest.parse(archive), epoch, seed, int(now)).serialise()

        return self.release(session_id, bearer, "strongroom", name, produce, query)

    # -- policies -----------------------------------------------------------------------

    def set_release_policy(self, policy: ReleasePolicy, *, by: str) -> None:
        """Replace the Rego policy, durably; in force for the next request."""
        digest = hashlib.sha256(policy.text.encode()).hexdigest()
        with self.store.transaction():
            self.store.set_policy("release", policy.text, at=int(self.clock()))
            self.record({"event": "policy-set", "policy": "release", "digest": digest, "administrator": by})
        self.policies.release = policy

    def set_appraisal_policy(self, policy: Policy, text: str, *, by: str) -> None:
        """Replace the TOML policy whose text this is, durably; in force for the next attestation."""
        digest = policy.digest.hex()
        with self.store.transaction():
            self.store.set_policy("appraisal", text, at=int(self.clock()))
            self.record({"event": "policy-set", "policy": "appraisal", "digest": digest, "administrator": by})
        self.policies.appraisal = policy

    # -- records ------------------------------------------------------------------------

    def record(self, entry: Mapping[str, Any]) -> None:
        """Write an audit entry, inside the transaction of what it describes; raises `AuditError`, `StoreError`."""
        dated = {"at": int(self.clock())} | {name: value for name, value in entry.items() if value not in ("", None)}
        try:
            with self.store.transaction():
                self.audit.append(dated)
                self.plugins.audit(dated)
        except ReleaseError as error:
            self._trouble = str(error)
            raise
        self._trouble = ""

    def trouble(self) -> str:
        """Why the broker cannot release anything at the moment; empty where it can."""
        if self._trouble:
            with suppress(StoreError):
                # Tried again only after a failure: a probe writes to the disk, and as much as a few entries.
                self.store.write("INSERT OR REPLACE INTO about VALUES ('probe', zeroblob(65536))")
                self.store.write("DELETE FROM about WHERE name = 'probe'")
                self._trouble = ""
        return self._trouble

    def _refuse(self, entry: Mapping[str, Any], reason: str, failed: tuple[Check, ...]) -> None:
        self.counters.count(str(entry["event"]), "refused")
        log.warning("%s refused: %s", entry["event"], reason)
        for check in failed:
            log.warning("  %s: expected %s, found %s", check.name, check.expected, check.found)
        shown = [
            {key: str(value)[:_TEXT_SHOWN] for key, value in check.serialise().items() if key in _CHECK_FIELDS}
            for check in failed[:_CHECKS_SHOWN]
        ]
        # A refusal that cannot be recorded is still a refusal; the log above has it.
        with suppress(ReleaseError):
            self.record(dict(entry) | {"decision": "refused", "reason": reason[:2000], "checks": shown})


_CHECK_FIELDS = ("name", "word", "expected", "found")


def _digestible(value: Any) -> str:
    """Evidence as text for its digest: a JSON spelling of our own, since it may hold any number."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _summary(claims: Mapping[str, Any]) -> dict[str, str]:
    """``{submodule: status}`` of a token's claims."""
    return {name: str(each.get("ear.status")) for name, each in claims.get("submods", {}).items()}
