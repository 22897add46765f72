"""Obtain a model key from a key broker: the client of KBS 0.4.0 (docs/release.md).

A full handshake for each key, with a TEE key of its own: challenge, evidence, token, resource. It speaks
alike to a strongroom broker and to a stock Trustee; what a Trustee has not (leases, versions) is then
None. Each way to fail is its own error with the next step.

What comes back is input: it is checked here for its archive digest, and by whoever opens the archive
against the key commitment in the signed header. The broker needs no trust beyond that.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any

import requests

from strongroom.broker.document import ModelKeyDocument, check_name
from strongroom.broker.epochs import EpochSeed
from strongroom.broker.jwe import RESOURCE_LIMIT, Jwe, TeeKeyPair
from strongroom.broker.protocol import (
    ADDITION,
    BASE_PATH,
    HASH_ALGORITHMS,
    SESSION_COOKIE,
    VERSION,
    Attestation,
    Challenge,
    Request,
    Resource,
    device_document,
    document_digest,
    primary_document,
)
from strongroom.broker.statement import KeeperStatement
from strongroom.encoding import Fields, parse_json
from strongroom.errors import (
    BrokerUnreachable,
    MalformedInput,
    ReleaseError,
)
from strongroom.evidence.types import Attester, ChallengedAttester, Evidence
from strongroom.hookspecs import Grant
from strongroom.keeper.refusals import (
    NOT_KBS,
    Again,
    attest_refused,
    auth_refused,
    cause,
    resource_refused,
    unable,
    unverified_claims,
)
from strongroom.keys import ArchiveDigest, AuthorId, ModelKey

ANSWER_LIMIT = 4 << 20
"""Bytes of one answer that we read; a token with eight GPUs passes 128 KiB."""

ATTEMPTS = 3
PAUSE_S = 1.0
FRESH_S = 240.0
"""A session older than this may have expired on the way: then, and only then, refused evidence is retried."""


@dataclass(frozen=True, slots=True)
class Released:
    """A model key and what the broker says beside it. Times in seconds.

    `broker_time` is Unix time; `asked_at` is our CLOCK_BOOTTIME just before the key was asked for, from
    which a lease of `lease_s` counts. From a stock Trustee all but `archive` and `key` may be None.
    `claims` are those of the attestation token, not verified: they are for showing.
    """

    archive: ArchiveDigest
    key: ModelKey = field(repr=False)
    asked_at: float
    version: int | None = None
    author: AuthorId | None = None
    lease_s: int | None = None
    lease: str | None = None
    broker_time: int | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _Handshake:
    session: requests.Session
    keys: TeeKeyPair
    opened_at: float
    token: str = field(default="", repr=False)


class ReleaseClient:
    """A client of one broker, for one attester.

    `url` is the broker's base, without ``/kbs/v0``; `additional` are attesters of devices, whose evidence
    is collected first; `statement` is what the keeper says about itself, sent only to a broker that asks
    for it; `init_data` is the text that the hardware holds the digest of. `timeout` is for each request, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        attester: Attester,
        ca: Path | None = None,
        timeout: float = 60.0,
        additional: Sequence[Attester] | None = None,
        statement: KeeperStatement | None = None,
        attempts: int = ATTEMPTS,
        pause_s: float = PAUSE_S,
        init_data: str | None = None,
    ) -> None:
        self._init_data = init_data
        self._base = url.rstrip("/") + BASE_PATH
        self._attester = attester
        self._additional = tuple(additional or ())
        self._statement = statement
        self._timeout = timeout
        self._verify: str | bool = str(ca) if ca is not None else True
        self._attempts = attempts
        self._pause_s = pause_s

    def fetch(self, resource: tuple[str, str, str], archive: ArchiveDigest) -> Released:
        """The key of `archive`, stored under `resource`.

        Raises `BrokerUnreachable`, `ProtocolMismatch`, `AttestationFailed`, `ReleaseDenied`,
        `ResourceMissing`, `AttesterUnavailable`.
        """
        name = Resource(*resource)
        octets, asked_at, claims = self.fetch_octets(f"resource/{name}")
        try:
            document = ModelKeyDocument.parse(octets)
            check_name(name, document)
        except MalformedInput as error:
            raise ReleaseError(
                f"what the broker stores under {name} is not the key of that archive: {error}",
                hint="seal the archive again, or register its key again: strongroom key add",
            ) from error
        if document.archive != archive:
            raise ReleaseError(
                f"the broker's key under {name} is for archive {document.archive}, asked was {archive}",
                hint="the name and the archive do not belong together; check the broker's list: strongroom key list",
            )
        return Released(
            archive=document.archive,
            key=document.key,
            asked_at=asked_at,
            version=document.version,
            author=document.author,
            lease_s=document.lease_s,
            lease=document.lease,
            broker_time=document.broker_time,
            claims=claims,
        )

    def release(self, archive: ArchiveDigest, resource: tuple[str, str, str]) -> Grant:
        """`fetch` as a key provider (`strongroom.hookspecs.KeyProvider`)."""
        released = self.fetch(resource, archive)
        return Grant(released.key, released.lease_s, released.broker_time, released.asked_at)

    def fetch_epoch(
        self, resource: tuple[str, str, str], archive: ArchiveDigest, broker_key: bytes, epoch: int | None = None
    ) -> EpochSeed:
        """The seed of an epoch, of the present one by default, for channel mode ``fleet``.

        `broker_key` is the DER SubjectPublicKeyInfo that the archive's signed header names; the seed's
        signature is held against it. Raises as `fetch` does; a stock Trustee has none: `ResourceMissing`.
        """
        query = "" if epoch is None else f"?epoch={epoch}"
        octets, _, _ = self.fetch_octets(f"strongroom/epoch/{Resource(*resource)}{query}")
        try:
            seed = EpochSeed.parse(octets)
        except MalformedInput as error:
            raise ReleaseError(f"the broker's epoch seed is malformed: {error}", hint=NOT_KBS) from error
        seed.verify(broker_key, archive)
        if epoch is not None and seed.epoch != epoch:
            raise ReleaseError(f"the broker gave the seed of epoch {seed.epoch}, asked was {epoch}", hint=NOT_KBS)
        return seed

    def fetch_octets(self, path: str) -> tuple[bytes, float, Mapping[str, Any]]:
        """(plaintext, CLOCK_BOOTTIME before it was asked for, token claims) of ``<plugin>/<path>``.

        One handshake, or up to `attempts` of them where the network fails or a session was lost.
        """
        last: ReleaseError | None = None
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause_s)
            with requests.Session() as session:
                # Neither a proxy nor a .netrc of the environment has a say in this.
                session.trust_env = False
                session.verify = self._verify
                session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # see `_keep_session`
                try:
                    handshake = self._attest(session)
                    asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
                    octets = self._open(handshake, path)
                    return octets, asked_at, unverified_claims(handshake.token)
                except Again as retry:
                    last = retry.error
        if last is None:
            raise BrokerUnreachable("no attempt was made", hint="attempts is at least 1")
        raise last

    # -- the handshake ---------------------------------------------------------------

    def _attest(self, session: requests.Session) -> _Handshake:
        opened_at = time.monotonic()
        extra: dict[str, Any] = {"supported-hash-algorithms": list(HASH_ALGORITHMS)}
        if self._statement is not None:
            extra[ADDITION] = {"version": 1}
            if isinstance(self._attester, ChallengedAttester) and (announced := self._attester.announce()):
                extra[ADDITION][self._attester.tee] = dict(announced)
        request = Request(tee=self._attester.tee, extra_params=extra)
        status, body = self._exchange(session, "POST", "auth", request.serialise())
        if status != 200:
            raise auth_refused(self._base, self._attester.tee, status, body)
        try:
            challenge = Challenge.parse(body)
            hash_name = challenge.hash_name()
        except MalformedInput as error:
            raise BrokerUnreachable(f"the broker's challenge is not one: {error}", hint=NOT_KBS) from error
        handshake = _Handshake(session, TeeKeyPair.generate(), opened_at)
        attestation = self._attestation(challenge, hash_name, handshake.keys)
        status, body = self._exchange(session, "POST", "attest", attestation.serialise())
        if status != 200:
            document = primary_document(attestation.nonce, attestation.tee_key, attestation.additional)
            refused = attest_refused(self._attester.tee, document_digest(document), status, body)
            raise Again(refused) if time.monotonic() - handshake.opened_at > FRESH_S else refused
        try:
            read = Fields(parse_json(body, where="attest", limit=ANSWER_LIMIT), where="attest")
            handshake.token = read.text("token", limit=ANSWER_LIMIT)
        except MalformedInput as error:
            raise BrokerUnreachable(f"the broker's answer holds no token: {error}", hint=NOT_KBS) from error
        return handshake

    def _attestation(self, challenge: Challenge, hash_name: str, keys: TeeKeyPair) -> Attestation:
        """Evidence in the order of docs/release.md section 3: devices first, then the CPU over them."""
        devices: dict[str, Any] = {}
        if self._additional:
            digest = document_digest(device_document(challenge.nonce, keys.public), hash_name)
            devices = {each.tee: dict(each.evidence(digest).body) for each in self._additional}
        asked = challenge.addition()
        if self._statement is not None and asked is not None and ADDITION in asked.get("additional-evidence", ()):
            devices[ADDITION] = self._statement.serialise()
        additional = json.dumps(devices, separators=(",", ":")) if devices else ""
        document = primary_document(challenge.nonce, keys.public, additional)
        evidence = self._evidence(asked, document_digest(document, hash_name))
        return Attestation(challenge.nonce, keys.public, evidence.body, additional, self._init_data)

    def _evidence(self, asked: Mapping[str, Any] | None, digest: bytes) -> Evidence:
        """The CPU's evidence, with the answer to the broker's own challenge where it made one (section 11.5)."""
        attester = self._attester
        if not isinstance(attester, ChallengedAttester):
            return attester.evidence(digest)
        if asked is None:
            return attester.protocol_evidence(digest)
        if attester.tee in asked:
            try:
                attester.respond(asked[attester.tee])
            except MalformedInput as error:
                raise BrokerUnreachable(f"the broker's challenge is not one: {error}", hint=NOT_KBS) from error
        return attester.evidence(digest)

    def _open(self, handshake: _Handshake, path: str) -> bytes:
        status, body = self._exchange(handshake.session, "GET", path, None)
        if status != 200:
            raise resource_refused(path, handshake.token, status, body)
        try:
            return handshake.keys.open(Jwe.parse(body))
        except MalformedInput as error:
            raise ReleaseError(
                f"the broker's answer does not open: {error}",
                hint="somebody between here and the broker changed it, or it is no broker of protocol " + VERSION,
            ) from error

    def _exchange(self, session: requests.Session, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """(status, body) of one request; transport failures may be retried."""
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            with session.request(
                method, f"{self._base}/{path}", data=data, headers=headers, timeout=self._timeout,
                allow_redirects=False, stream=True,
            ) as answer:  # fmt: skip
                _keep_session(session, answer)
                octets = answer.raw.read(ANSWER_LIMIT + 1, decode_content=True)
        except (requests.RequestException, OSError) as error:
            raise Again(
                BrokerUnreachable(
                    f"no answer from the key broker at {self._base}: {cause(error)}",
                    hint="is it running and reachable from here, and does its certificate chain to the CA you named?",
                )
            ) from error
        except Exception as error:  # urllib3 raises its own through `raw`
            raise Again(BrokerUnreachable(f"the broker's answer broke off: {type(error).__name__}")) from error
        limit = RESOURCE_LIMIT if method == "GET" else ANSWER_LIMIT
        if len(octets) > limit:
            raise BrokerUnreachable(f"an answer of more than {limit} bytes is no answer of a key broker", hint=NOT_KBS)
        if answer.status_code == 429:
            raise Again(
                BrokerUnreachable(
                    f"the broker at {self._base} asks us to slow down (HTTP 429)",
                    hint="many keepers behind one address? `strongroom broker serve --pace` says how much it takes",
                )
            )
        if answer.status_code in (502, 503, 504):
            raise Again(unable(answer.status_code, octets))
        return answer.status_code, octets


def _keep_session(session: requests.Session, answer: requests.Response) -> None:
    """The broker's session cookie, taken by hand: its end is a date, and the wall clock here is the host's.

    A cookie jar would drop it where that clock is some minutes fast, and the handshake could never end. The broker
    knows when a session is over.
    """
    for line in answer.raw.headers.getlist("Set-Cookie"):
        name, _, value = line.partition(";")[0].strip().partition("=")
        if name == SESSION_COOKIE and re.fullmatch(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,256}", value):
            session.headers["Cookie"] = f"{name}={value}"
