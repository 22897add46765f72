"""Every error this package raises on purpose, in one small tree.

The message carries the values that decided; `hint` carries the next step. The CLI
prints both. Two rules hold for each of them: no message ever contains plaintext, a
key or a request body, and what crosses a trust boundary is the class of the failure,
while the detail stays in our own log.

docs/errors.md lists them for people; a test keeps that page complete.
"""

from __future__ import annotations


class StrongroomError(Exception):
    """The root. `hint` is one sentence that says what to do next; it may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class MalformedInput(StrongroomError):
    """Bytes or fields from outside are not what their format page says."""


class ConfigurationInvalid(StrongroomError):
    """A configuration, policy or flag cannot be used as it stands."""


class WrongUse(ConfigurationInvalid):
    """A command lacks an option, or has options that do not go together; the command line exits with 2."""


class KeyFileInvalid(StrongroomError):
    """A key file is missing, of the wrong kind, or readable by others."""


class PluginInvalid(StrongroomError):
    """A plugin that the configuration names cannot be loaded, or broke its contract."""


# -- archive -------------------------------------------------------------------


class ArchiveError(StrongroomError):
    """Something about a sealed archive."""


class ArchiveMalformed(ArchiveError):
    """The bytes do not follow docs/format.md."""


class ArchiveUnsupported(ArchiveError):
    """A well-formed archive of a version, suite or flag this release does not know."""


class ArchiveTampered(ArchiveError):
    """A signature, digest, commitment or tag does not hold: somebody changed the archive."""


class ArchiveTruncated(ArchiveTampered):
    """The archive ends before its signed length."""


class AuthorUnknown(ArchiveError):
    """A valid signature, by an author that nobody here trusts."""


class SignatureDowngraded(ArchiveError):
    """The verifier demands a stronger kind of signature than the archive carries."""


class WrongKey(ArchiveError):
    """The key offered is not the key that sealed this archive."""


class NoRecipient(ArchiveError):
    """None of the identities offered matches a recipient of this archive."""


class ArchiveExpired(ArchiveError):
    """The author's expiry date has passed."""


class SealRefused(ArchiveError):
    """The input cannot be sealed as it is, or changed while it was being read."""


# -- channel -------------------------------------------------------------------


class ChannelError(StrongroomError):
    """Something about the encrypted channel."""


class EncapsulationInvalid(ChannelError):
    """An encapsulated message does not open (docs/protocol.md gives the outer status)."""


class KeyUnknown(ChannelError):
    """The key id, KEM or cipher pair named by a request is not one on offer."""


class MessageInvalid(ChannelError):
    """A message opened, and what is inside is not valid Binary HTTP.

    `status` is what the encapsulated answer says: 400, or 413 and 431 for what is valid and too large.
    """

    def __init__(self, message: str, *, status: int = 400, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class StreamTruncated(ChannelError):
    """A stream ended before its authenticated last chunk; `received` holds what had arrived."""

    def __init__(self, message: str, *, received: bytes = b"", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.received = received


class ReplayRefused(ChannelError):
    """The same encapsulated request was seen before."""


class DateRefused(ChannelError):
    """The inner Date field is missing where it is required, or outside the window.

    `now` is the clock that decided, in seconds since 1970; None where nobody said it.
    """

    def __init__(self, message: str, *, now: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.now = now


# -- evidence ------------------------------------------------------------------


class EvidenceError(StrongroomError):
    """Something about attestation evidence."""


class EvidenceMalformed(EvidenceError):
    """Evidence or an endorsement cannot be parsed."""


class EvidenceRefused(EvidenceError):
    """An appraisal ended in no; `checks` holds every check, passed and failed."""

    def __init__(self, message: str, *, checks: tuple[object, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.checks = checks


class AttesterUnavailable(EvidenceError):
    """This machine cannot produce the evidence that was asked for."""


class CollateralUnavailable(EvidenceError):
    """Endorsements that a verification needs could not be obtained."""


# -- key release ---------------------------------------------------------------


class ReleaseError(StrongroomError):
    """A key did not come from a broker."""


class BrokerUnreachable(ReleaseError):
    """No answer, or no answer of the protocol, came from the broker."""


class ProtocolMismatch(ReleaseError):
    """The broker speaks another version of the key broker protocol."""


class AttestationFailed(ReleaseError):
    """The broker did not accept our evidence; its log says why."""


class ReleaseDenied(ReleaseError):
    """The broker judged the evidence and its policy keeps the key. Never retried."""


class ResourceMissing(ReleaseError):
    """The broker does not hold the key of this archive."""


class LeaseExpired(ReleaseError):
    """The right to hold a model key has ended and was not renewed."""


class StoreError(ReleaseError):
    """The broker's own store cannot be opened, read or written."""


class AuditError(ReleaseError):
    """The audit log cannot be written, or does not verify."""


# -- keeper, launch, worker ----------------------------------------------------


class KeeperError(StrongroomError):
    """The keeper refused or could not do what it was asked."""


class KeeperUnavailable(KeeperError):
    """No keeper answers on its socket."""


class KeeperRefused(KeeperError):
    """The keeper does not do this for the process that asked."""


class ModelUnavailable(KeeperError):
    """The model is not open: its key has not been released or was taken back, or nobody needed it for a while."""


class RoomUnavailable(KeeperError):
    """Memory or descriptors for an opened model could not be had; nothing of it was kept."""


class ModelOpening(ModelUnavailable):
    """The model's key is there and it is being opened; it will be available in a moment."""


class NonceRateExceeded(KeeperError):
    """Fresh evidence is made at a bounded rate, and that rate is used up; cached evidence is still served."""


class LaunchRefused(StrongroomError):
    """`strongroom launch` will not start with these archives, flags or surroundings."""


# -- client --------------------------------------------------------------------


class ClientError(StrongroomError):
    """Something on the client's side of the channel."""


class ServerRefused(ClientError):
    """The server's evidence does not satisfy the client's policy; nothing was sent.

    `checks` holds every check with what was expected and found.
    """

    def __init__(self, message: str, *, checks: tuple[object, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.checks = checks


class ServerUnsealed(ClientError):
    """The endpoint does not speak strongroom's protocol; nothing was sent."""


class ServerUnavailable(ClientError):
    """The server gives no keys at the moment, or the model is not open; nothing but a question was sent."""


class RequestRefused(ClientError):
    """An answer that is not encapsulated came back: from the server, or from anybody on the path.

    `status` is the HTTP status, unauthenticated. The request was sent, sealed; its content is not known
    to whoever answered.
    """

    def __init__(self, message: str, *, status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
