"""How the broker says no: one exception that carries what the peer may learn, and what only we may.

The peer gets `information`, in the exact spelling of docs/release.md section 6. `str(refusal)` and
`checks` are for the broker's own log and its audit log.
"""

from __future__ import annotations

from strongroom.broker.protocol import ErrorInformation
from strongroom.errors import ReleaseError


class Refused(ReleaseError):
    """A request that the broker does not grant. Raised in this room, answered by `http`."""

    def __init__(
        self, name: str, detail: str, reason: str, *, checks: tuple[object, ...] = (), status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.information = ErrorInformation(name, detail)
        self.checks = checks
        self.status = self.information.status if status is None else status

    @classmethod
    def auth(cls, reason: str) -> Refused:
        """`POST auth` failed; the reason is about the message alone, so the peer may read it."""
        return cls("AttestationError", f"Attestation error: RCAR handshake Auth failed: {reason}", reason)

    @classmethod
    def attest(cls, reason: str, *, checks: tuple[object, ...] = ()) -> Refused:
        """`POST attest` failed. No cookie, an old session, a wrong nonce, bad evidence: all look the same."""
        return cls("AttestationError", "Attestation error: RCAR handshake Attest failed", reason, checks=checks)

    @classmethod
    def no_token(cls, reason: str) -> Refused:
        """Neither an attested session nor a bearer token came along."""
        return cls("TokenNotFound", "Attestation Token not found", reason)

    @classmethod
    def bad_token(cls, reason: str) -> Refused:
        """A token that has expired or that we did not sign."""
        return cls("TokenVerifierError", "Token Verifier error", reason)

    @classmethod
    def policy(cls, reason: str) -> Refused:
        """The release policy, a revocation, a limit or a veto keeps the key."""
        return cls("PolicyDeny", "Access denied by policy", reason)

    @classmethod
    def plugin(cls, reason: str) -> Refused:
        """No such resource, or a bad name."""
        return cls("PluginInternalError", "Plugin internal error", reason)

    @classmethod
    def unable(cls, reason: str) -> Refused:
        """A failure of ours: no decision, so a keeper goes on under its lease and asks again (status 503)."""
        return cls("PluginInternalError", "Plugin internal error", reason, status=503)

    @classmethod
    def unknown_plugin(cls, name: str) -> Refused:
        """A first path segment that no plugin serves."""
        return cls("PluginNotFound", f"Plugin {name} not found", "no such plugin")

    @classmethod
    def path(cls, reason: str) -> Refused:
        """A path outside the protocol."""
        return cls("InvalidRequestPath", "Invalid request path", reason)

    @classmethod
    def admin(cls, reason: str) -> Refused:
        """An administrator's token is missing, stale, unknown, or of a role that may not do this."""
        return cls("AdminAuthAccess", "Admin auth access error", reason)
