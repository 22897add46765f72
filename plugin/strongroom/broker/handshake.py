"""A handshake: the challenge, and the judgement of what comes back (docs/release.md sections 2 to 5).

    evidence.judge → EAR → token

One challenge, one session, one judgement. Nothing here knows resources or releases anything: `release` does,
and takes the session with its `Verdict`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from strongroom.broker.initdata import check_init_data
from strongroom.broker.journal import Journal
from strongroom.broker.jwe import check_tee_key
from strongroom.broker.protocol import (
    ADDITION,
    OWN_TEES,
    STOCK_TEES,
    Attestation,
    Challenge,
    Request,
    device_document,
    document_digest,
    primary_document,
)
from strongroom.broker.refusals import Refused
from strongroom.broker.rego import ReleasePolicy
from strongroom.broker.sessions import Session, Sessions
from strongroom.broker.statement import KeeperStatement
from strongroom.broker.tokens import TokenSigner
from strongroom.encoding import b64
from strongroom.errors import EvidenceMalformed, EvidenceRefused, MalformedInput, ProtocolMismatch
from strongroom.evidence.ear import ear_claims
from strongroom.evidence.judge import Endorse, Presented, Verdict, judge_composite
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import ChallengingVerifier, Check, Evidence, SessionChallenge
from strongroom.plugins import Plugins

EXTRA_LIMIT = 65536
"""Bytes of a request's extra-params as JSON; a TPM's certificate and key are a few thousand."""


@dataclass(slots=True)
class Policies:
    """What decides. Both are None until somebody sets them, and then nothing is released."""

    appraisal: Policy | None = None
    release: ReleasePolicy | None = None


class Handshakes:
    """Challenges and judges. Every method may be called from many threads."""

    def __init__(
        self,
        sessions: Sessions,
        signer: TokenSigner,
        journal: Journal,
        *,
        plugins: Plugins,
        policies: Policies,
        endorsements: Endorse,
        clock: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._signer = signer
        self._journal = journal
        self._plugins = plugins
        self._policies = policies
        self._endorsements = endorsements
        self._clock = clock

    # -- POST auth ----------------------------------------------------------------

    def auth(self, body: bytes) -> Session:
        """Open a session with a fresh challenge; raises `Refused`."""
        try:
            request = Request.parse(body)
        except ProtocolMismatch as error:
            raise Refused.auth(str(error)) from error
        except MalformedInput as error:
            raise Refused.auth("deserialize Request") from error
        if request.tee not in STOCK_TEES | OWN_TEES | set(self._plugins.verifiers()):
            raise Refused.auth("deserialize Request")
        _check_size(request.extra_params)
        nonce = b64(secrets.token_bytes(32))
        extra, proof = self._additions(request)
        # Without its extra-params, which are used up: a session is kept for five minutes, and anybody may open one.
        session = self._sessions.open(replace(request, extra_params=""), Challenge(nonce, extra))
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
        if request.tee in announced and request.tee in self._plugins.verifiers():
            verifier = self._plugins.verifiers()[request.tee]
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
        session = self._sessions.find(session_id)
        if session is None:
            raise Refused.attest("no session of that id, or it has expired")
        with session.lock:
            if session.token is None:
                self._judge(session, attestation)
        return session

    def _judge(self, session: Session, attestation: Attestation) -> None:
        if attestation.nonce != session.challenge.nonce:
            raise Refused.attest("the nonce is not this session's")
        session.evidence_digest = _evidence_digest(attestation)
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
            self._journal.refuse(entry, str(error), failed)
            raise Refused.attest(str(error), checks=error.checks) from error
        except (MalformedInput, EvidenceMalformed) as error:
            self._journal.refuse(entry, str(error))
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
        token = self._signer.sign(claims, now=self._clock())
        named = {"policy": verdict.policy.name, "policy_digest": verdict.policy.digest.hex(), "keeper": session.keeper}
        self._journal.record(entry | named | {"decision": "granted"})
        self._journal.count("attest", "granted")
        self._sessions.attested(session, token, verdict)

    def _devices(self, attestation: Attestation) -> tuple[KeeperStatement | None, tuple[Evidence, ...]]:
        """The keeper's own statement, and what is evidence about devices."""
        devices = attestation.devices()
        own = [each for each in devices if each.tee == ADDITION]
        statement = KeeperStatement.parse(own[0].body) if own else None
        return statement, tuple(each for each in devices if each.tee != ADDITION)

    def _verdict(self, session: Session, attestation: Attestation, devices: tuple[Evidence, ...]) -> Verdict:
        primary = Evidence(session.request.tee, attestation.primary)
        document = primary_document(attestation.nonce, attestation.tee_key, attestation.additional)
        policy = self._policies.appraisal
        verifiers = self._plugins.verifiers()
        proof, session.proof = session.proof, None  # one answer, right or wrong
        if proof is not None:
            try:
                # A ChainMap, since unpacking would load every verifier there is.
                verifiers = ChainMap({session.request.tee: proof.verifier(primary)}, verifiers)  # type: ignore[arg-type]
            except EvidenceMalformed as error:
                raise MalformedInput(str(error)) from error
        return judge_composite(
            Presented(primary, self._endorsements(primary, policy)),
            [Presented(each, self._endorsements(each, policy)) for each in devices],
            binding=document_digest(document),
            device_binding=document_digest(device_document(attestation.nonce, attestation.tee_key)),
            policy=policy,
            now=datetime.fromtimestamp(self._clock(), UTC),
            verifiers=verifiers,
        )


def _check_size(extra_params: Any) -> None:
    try:
        size = len(json.dumps(extra_params, separators=(",", ":")))
    except RecursionError as error:
        raise Refused.auth("extra-params is nested too deeply") from error
    if size > EXTRA_LIMIT:
        raise Refused.auth(f"extra-params of {size} bytes, the limit is {EXTRA_LIMIT}")


def _evidence_digest(attestation: Attestation) -> str:
    """SHA-256 in hex that names this evidence in the audit log; over a JSON spelling of our own."""
    try:
        spelled = json.dumps([attestation.primary, attestation.additional], sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise Refused.attest("the evidence is nested too deeply") from error
    return hashlib.sha256(spelled.encode("ascii")).hexdigest()
