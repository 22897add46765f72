"""Handshakes in progress: one session for each `POST auth`, five minutes long (docs/release.md section 2)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from strongroom.broker.protocol import SESSION_SECONDS, Challenge, Request
from strongroom.evidence.judge import Verdict
from strongroom.evidence.types import SessionChallenge

SESSION_LIMIT = 20_000
"""Sessions that are remembered at once; a flood of `auth` drops the oldest that was never attested."""


@dataclass(slots=True)
class Session:
    """One peer's handshake. `token` and `verdict` are set once, by a successful `attest`.

    `proof` is what the attester was challenged with beside the nonce; it is used up by one attestation.
    """

    id: str
    request: Request
    challenge: Challenge
    expires: float
    proof: SessionChallenge | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    verdict: Verdict | None = None
    keeper: str = ""
    evidence_digest: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


class Sessions:
    """The table of sessions, in memory only: a broker that restarts asks everybody to attest again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._by_token: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, request: Request, challenge: Challenge) -> Session:
        """A new session; its id is never one that a peer proposed."""
        session = Session(uuid.uuid4().hex, request, challenge, self._clock() + SESSION_SECONDS)
        with self._lock:
            self._sweep()
            self._sessions[session.id] = session
        return session

    def find(self, session_id: str | None) -> Session | None:
        """The session of that id, unless it has expired."""
        if not session_id:
            return None
        with self._lock:
            session = self._sessions.get(session_id)
        return session if session is not None and self._clock() < session.expires else None

    def attested(self, session: Session, token: str, verdict: Verdict) -> None:
        """Remember the outcome; both lookups find it from now on.

        A session that was swept while it was judged has the outcome, and no lookup finds it: nothing would forget it.
        """
        with self._lock:
            session.token, session.verdict = token, verdict
            if self._sessions.get(session.id) is session:
                self._by_token[token] = session

    def of_token(self, token: str) -> Session | None:
        """The session in which this token was issued, while it lasts."""
        with self._lock:
            session = self._by_token.get(token)
        return session if session is not None and self._clock() < session.expires else None

    def now(self) -> float:
        """The clock that `Session.expires` is told by."""
        return self._clock()

    def __len__(self) -> int:
        return len(self._sessions)

    def _sweep(self) -> None:
        """Sessions are in order of age, so the expired ones are in front."""
        now = self._clock()
        for session in list(self._sessions.values()):
            if session.expires > now:
                break
            self._forget(session)
        if len(self._sessions) >= SESSION_LIMIT:
            oldest = next((each for each in self._sessions.values() if each.token is None), None)
            self._forget(oldest or next(iter(self._sessions.values())))

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
        if session.token is not None:
            self._by_token.pop(session.token, None)
