"""What a key broker's answer means where it is not the one that was asked for: each an error with the next step."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from strongroom.broker.protocol import VERSION, ErrorInformation
from strongroom.errors import (
    AttestationFailed,
    BrokerUnreachable,
    MalformedInput,
    ProtocolMismatch,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
)
from strongroom.evidence.ear import REVOCATION
from strongroom.evidence.types import RevocationStatus

NOT_KBS = "is the URL that of a key broker, without a path?"


class Again(Exception):
    """Worth another handshake; `error` is what to raise once there were enough."""

    def __init__(self, error: ReleaseError) -> None:
        super().__init__(str(error))
        self.error = error


def auth_refused(base: str, tee: str, status: int, body: bytes) -> ReleaseError:
    """What ``auth`` was answered with."""
    information = _information(status, body)
    if "Version Mismatch" in information.detail:
        return ProtocolMismatch(
            f"the broker at {base} does not speak {VERSION}: {information.detail}",
            hint=f"use a broker of key broker protocol {VERSION} (Trustee 0.14 or newer)",
        )
    return AttestationFailed(
        f"the broker did not open a handshake for TEE {tee!r}: {information.detail}",
        hint="does this broker know that kind of TEE?",
    )


def attest_refused(tee: str, document: bytes, status: int, body: bytes) -> ReleaseError:
    """What ``attest`` was answered with, for evidence over a document of that digest."""
    if status == 413:
        return AttestationFailed("the evidence is larger than the broker accepts", hint="raise its request limit")
    information = _information(status, body)
    return AttestationFailed(
        f"the broker refused the {tee} evidence over {document.hex()[:32]}…: {information.name}: {information.detail}",
        hint="the broker's log and audit log list every check; the protocol tells a peer no more",
    )


def resource_refused(path: str, token: str, status: int, body: bytes) -> ReleaseError | Again:
    """What the question for ``path`` was answered with, under that token."""
    information = _information(status, body)
    if information.name == "PolicyDeny":
        return ReleaseDenied(
            f"the broker's policy keeps {path}; the attestation said {_statuses(token)}",
            hint="the policy, a revocation, a minimum version or a limit decided: the broker's log says which",
        )
    if information.name in ("TokenNotFound", "TokenVerifierError"):
        return Again(AttestationFailed(f"the broker lost our attestation: {information.detail}", hint="try again"))
    if information.name in ("PluginInternalError", "InvalidRequestPath"):
        return ResourceMissing(
            f"the broker has nothing it can release under {path}: {information.detail}",
            hint="was this archive's key registered there (strongroom key add)? check tenant, lineage and version",
        )
    if information.name == "PluginNotFound":
        return ResourceMissing(
            f"this broker does not serve {path}: {information.detail}",
            hint="a stock Trustee has no leases and epochs; see docs/release.md section 11",
        )
    return ReleaseError(f"the broker refused {path}: {information.name}: {information.detail}")


def _information(status: int, body: bytes) -> ErrorInformation:
    """The protocol's error, whatever its content type; a stranger's body is shown by its first bytes."""
    try:
        return ErrorInformation.parse(body)
    except MalformedInput as error:
        raise _foreign(status, body) from error


def unable(status: int, body: bytes) -> BrokerUnreachable:
    """A broker that says itself that it cannot decide at the moment, or something in front of it that says so."""
    try:
        information = ErrorInformation.parse(body)
    except MalformedInput:
        return _foreign(status, body)
    return BrokerUnreachable(
        f"the broker cannot decide at the moment (HTTP {status}): {information.detail}",
        hint="its log and `broker status` say why; a full disk, for example",
    )


def _foreign(status: int, body: bytes) -> BrokerUnreachable:
    shown = body[:80].decode("utf-8", "replace")
    return BrokerUnreachable(
        f"HTTP {status}, which is no answer of a key broker: {shown!r}",
        hint="a proxy in between, or another service at this address?",
    )


def cause(error: BaseException) -> str:
    """The innermost reason, without addresses of objects."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error)[:200]}"


def unverified_claims(token: str) -> Mapping[str, Any]:
    """A token's claims for showing; empty where they cannot be read. Nothing is decided on them."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _statuses(token: str) -> str:
    submodules = unverified_claims(token).get("submods")
    if not isinstance(submodules, dict) or not submodules:
        return "nothing about any device"
    told = {name: each if isinstance(each, dict) else {} for name, each in sorted(submodules.items())}
    unjudged = [name for name, each in told.items() if each.get(REVOCATION) == RevocationStatus.NOT_JUDGED]
    said = ", ".join(f"{name}: {each.get('ear.status', 'none')}" for name, each in told.items())
    return said + (f"; without a current revocation list for {', '.join(unjudged)}" if unjudged else "")
