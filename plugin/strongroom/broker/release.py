"""The broker's decision to release a key, each step only after the one before.

    handshake (judged evidence) → release policy (Rego) → revocations, versions, limits → vetoes → audit → JWE

A key is encrypted for the attested TEE before the audit entry is committed, and leaves after. What went
wrong is told in full to the log and the audit log, and to the peer by its class alone (`Refused`).
HTTP is `http`'s business; this module can be driven without a socket.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.broker import epochs, leases
from strongroom.broker.admin import key_id_of
from strongroom.broker.audit import AuditLog
from strongroom.broker.document import ModelKeyDocument, is_model_key
from strongroom.broker.epochs import EpochSeed
from strongroom.broker.handshake import Handshakes, Policies
from strongroom.broker.journal import Journal
from strongroom.broker.jwe import Jwe, seal_to
from strongroom.broker.protocol import Resource
from strongroom.broker.refusals import Refused
from strongroom.broker.rego import ReleasePolicy, request_data
from strongroom.broker.sessions import Session, Sessions
from strongroom.broker.store import ResourceFacts, Store
from strongroom.broker.tokens import TokenSigner, tee_key_of
from strongroom.errors import AuditError, StoreError
from strongroom.evidence.ear import REVOCATION
from strongroom.evidence.judge import Endorse, Verdict, no_endorsements
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import RevocationStatus
from strongroom.keys import ArchiveDigest
from strongroom.plugins import Plugins

log = logging.getLogger("strongroom.broker")


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
        endorsements: Endorse = no_endorsements,
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
        self._deciding = threading.Lock()
        """Around each release's last look at the policy, and around a policy's change in store and memory."""
        self.clock = clock
        self.sessions = Sessions(steady)
        self.journal = Journal(store, audit, plugins, clock)
        self.handshakes = Handshakes(
            self.sessions,
            signer,
            self.journal,
            plugins=plugins,
            policies=self.policies,
            endorsements=endorsements,
            clock=clock,
        )

    @property
    def public_key(self) -> bytes:
        """What an archive names to accept epoch seeds of this broker: DER SubjectPublicKeyInfo, Ed25519."""
        return self._identity.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def close(self) -> None:
        """Close the store; the broker is of no use after that."""
        self.store.close()

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
            facts = self.store.resource_facts(name)
            if facts is not None and facts.owner is not None:
                entry["owner"] = facts.owner
            policy = self.policies.release
            self._allow(policy, session, claims, plugin, name, query or {}, facts)
            tee_key = tee_key_of(claims)
            with self._deciding, self.store.transaction():
                if self.policies.release is not policy:
                    raise Refused.unable("the release policy was replaced while this release was decided")
                # Again, since an administrator may have revoked something while policy and vetoes took their time.
                self._check_standing(session, name, facts)
                jwe = seal_to(tee_key, produce(session, name, entry))
                self.journal.record(entry | {"decision": "granted"})
        except Refused as refusal:
            self.journal.refuse(entry, str(refusal))
            raise
        except (StoreError, AuditError) as error:
            log.error("release of %s refused, our own store failed: %s", name, error)
            self.journal.count("release", "failed")
            raise Refused.unable(str(error)) from error
        self.journal.count("release", "granted")
        return jwe

    def _allow(
        self, policy: ReleasePolicy | None, session: Session, claims: Mapping[str, Any], plugin: str, name: Resource,
        query: Mapping[str, str], facts: ResourceFacts | None,
    ) -> None:  # fmt: skip
        if policy is None:
            raise Refused.policy("no release policy is set, so nothing is released")
        data = request_data(plugin, tuple(name), query, facts.owner if facts else None)
        decision = policy.decide(claims, data)
        if not decision.granted:
            if not decision.made:
                raise Refused.unable(decision.reason)
            raise Refused.policy(decision.reason + _without_lists(claims))
        verdict, facts = self._check_standing(session, name, facts)
        context = {
            "tenant": name.repository, "version": facts.version, "owner": facts.owner, "keeper": session.keeper,
        }  # fmt: skip
        denials = self.plugins.vetoes(verdict, str(name), context)
        if denials:
            raise Refused.policy("; ".join(f"{plugin}: {denial.reason}" for plugin, denial in denials))

    def _check_standing(
        self, session: Session, name: Resource, decided: ResourceFacts | None
    ) -> tuple[Verdict, ResourceFacts]:
        """(what the session was judged to be, the resource's facts) where neither is revoked or too old.

        `decided` are the facts that the policy saw: what was replaced meanwhile is decided anew.
        """
        facts = self.store.resource_facts(name)
        if facts is None:
            raise Refused.plugin(f"there is no resource {name}")
        if facts != decided:
            raise Refused.unable(f"{name} was replaced while its release was decided")
        if session.verdict is None:
            raise Refused.bad_token("this session was never judged")
        leases.check_standing(self.store, session, name, facts)
        return session.verdict, facts

    def _document(self, session: Session, name: Resource, entry: dict[str, Any]) -> bytes:
        stored = self.store.resource(name)
        if stored is None:
            raise Refused.plugin(f"there is no resource {name}")
        if not is_model_key(stored):
            return stored
        document = ModelKeyDocument.parse(stored)
        if (self.store.resource_facts(name) or ResourceFacts()).archive is None:
            self._check_unmarked(session, name, document)
        lease = leases.grant(self.store, session, name, lease_s=document.lease_s, now=int(self.clock()))
        entry |= {"archive": str(document.archive), "lease": lease.id, "lease_s": lease.seconds}
        return document.released(lease=lease.id, lease_s=lease.seconds, broker_time=lease.at).serialise()

    def _check_unmarked(self, session: Session, name: Resource, document: ModelKeyDocument) -> None:
        """An earlier release took this key for none and wrote nothing beside it: what it says itself counts."""
        if document.owner is not None:
            raise Refused.plugin(f"the release policy was not told the owner of {name}: store it again")
        author = None if document.author is None else str(document.author)
        leases.check_standing(self.store, session, name, ResourceFacts(str(document.archive), document.version, author))

    # -- GET strongroom/epoch ---------------------------------------------------------

    def epoch(self, session_id: str | None, bearer: str | None, name: Resource, query: Mapping[str, str]) -> Jwe:
        """Release an epoch seed of an archive to an attested TEE, or raise `Refused`."""
        asked = query.get("epoch", "")
        if asked and not (asked.isascii() and asked.isdigit() and len(asked) < 10):
            raise Refused.plugin("epoch is a number")

        def produce(session: Session, name: Resource, entry: dict[str, Any]) -> bytes:
            archive = (self.store.resource_facts(name) or ResourceFacts()).archive
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
        entry = {"event": "policy-set", "policy": "release", "digest": digest, "administrator": by}
        with self._deciding:
            with self.store.transaction():
                self.store.set_policy("release", policy.text, at=int(self.clock()))
                self.journal.record(entry)
            self.policies.release = policy

    def set_appraisal_policy(self, policy: Policy, text: str, *, by: str) -> None:
        """Replace the TOML policy whose text this is, durably; in force for the next attestation."""
        digest = policy.digest.hex()
        entry = {"event": "policy-set", "policy": "appraisal", "digest": digest, "administrator": by}
        with self._deciding:
            with self.store.transaction():
                self.store.set_policy("appraisal", text, at=int(self.clock()))
                self.journal.record(entry)
            self.policies.appraisal = policy


def _without_lists(claims: Mapping[str, Any]) -> str:
    """What our log says beside a policy's no, since the shipped policies ask for it: whose revocation nobody judged."""
    said = {name: each.get(REVOCATION) for name, each in claims.get("submods", {}).items()}
    found = [name for name, status in said.items() if status == RevocationStatus.NOT_JUDGED]
    return f"; no current revocation list was at hand for {', '.join(found)}" if found else ""


def _summary(claims: Mapping[str, Any]) -> dict[str, str]:
    """``{submodule: status}`` of a token's claims."""
    return {name: str(each.get("ear.status")) for name, each in claims.get("submods", {}).items()}
