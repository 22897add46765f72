"""Believe a server, or not: the key bundle, the evidence over it, and the client's policy.

Pure: bytes, a policy and the present moment come in; a `VerifiedServer` comes out, or `ServerRefused`
with every check that was made (docs/protocol.md section 4.3). Who fetches the bundle is `exchange`'s
business.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strongroom.channel.bundle import BundleParts, KeyBundle
from strongroom.channel.kem import KEMS, XWING
from strongroom.channel.keylist import KeyConfig, KeyList, Pair
from strongroom.client.endpoint import Endpoint
from strongroom.errors import (
    CollateralUnavailable,
    EvidenceRefused,
    KeyUnknown,
    MalformedInput,
    ServerRefused,
    ServerUnsealed,
)
from strongroom.evidence.judge import Endorse, Verdict, judge, no_endorsements
from strongroom.evidence.policy import AdmittedModel, Policy
from strongroom.evidence.types import Check, Checklist, Evidence, Verifier, Word

SOURCE = "docs/protocol.md, section 4.3"
SKEW = 300
"""Seconds that a server's clock may be ahead of ours."""

MAX_AGE = 3600.0
"""Seconds that a verified bundle is used at most, whatever it says itself."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a client demands: its policy, and how evidence is verified.

    `kems` are accepted in this order; the default is X-Wing or nothing. `max_age` is in seconds.
    `endorse` obtains what vendors sign about a piece of evidence.
    """

    policy: Policy
    verifiers: Mapping[str, Verifier] = field(repr=False)
    endorse: Endorse = no_endorsements
    kems: tuple[int, ...] = (XWING,)
    max_age: float = MAX_AGE

    @classmethod
    def load(
        cls,
        policy: Policy | Path | str,
        *,
        plugins: Sequence[str] = (),
        endorse: Endorse = no_endorsements,
        kems: Sequence[int] = (XWING,),
        max_age: float = MAX_AGE,
    ) -> Trust:
        """From a policy file (TOML) and the names of verifier plugins; raises `ConfigurationInvalid`."""
        from strongroom.plugins import Plugins

        verifiers = Plugins.load(plugins).verifiers()
        read = policy if isinstance(policy, Policy) else Policy.load(Path(policy), verifiers)
        return cls(read, verifiers, endorse, tuple(kems), max_age)


@dataclass(frozen=True, slots=True)
class VerifiedServer:
    """A server whose evidence satisfied the policy: the only thing a request can be sealed to.

    `expires` is in seconds since the epoch, by the client's clock.
    """

    endpoint: Endpoint
    parts: BundleParts
    config: KeyConfig
    pair: Pair
    verdict: Verdict
    checks: tuple[Check, ...]
    expires: float

    @property
    def suite(self) -> str:
        """The KEM's name, for people."""
        return KEMS[self.config.kem_id].name

    def serialise(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "endpoint": self.endpoint.url,
            "accepted": True,
            "suite": self.suite,
            "key_id": self.config.key_id,
            "expires": int(self.expires),
            "bundle": self.parts.serialise(),
            "checks": [check.serialise() for check in self.checks],
        }


def verify_bundle(
    octets: bytes, *, endpoint: Endpoint, nonce: bytes | None, trust: Trust, now: datetime
) -> VerifiedServer:
    """Hold a bundle against the policy; `nonce` is what was sent, `now` an aware datetime.

    Raises `ServerUnsealed` for what is no bundle, `ServerRefused` with all checks for what fails.
    """
    try:
        bundle = KeyBundle.parse(octets)
    except MalformedInput as error:
        raise ServerUnsealed(
            f"{endpoint}: the answer is not a key bundle: {error}", hint="is a sealed model served there?"
        ) from error
    parts, checks = bundle.parts, Checklist()
    _check_nonce(parts, nonce, checks)
    _check_validity(parts, nonce, trust, now, checks)
    _check_model(parts, endpoint, checks)
    chosen = _check_keys(parts, trust, checks)
    _check_admitted(parts, trust.policy, checks)
    _check_mode(parts, trust.policy, checks)
    verdict = _judged(bundle, trust, now, checks)
    if verdict is None or chosen is None or checks.failed:
        raise refusal(endpoint, checks.all)
    expires = min(float(parts.not_after), now.timestamp() + trust.max_age)
    return VerifiedServer(endpoint, parts, *chosen, verdict, checks.all, expires)


def _judged(bundle: KeyBundle, trust: Trust, now: datetime, checks: Checklist) -> Verdict | None:
    evidence = Evidence(bundle.evidence.tee, bundle.evidence.body)
    try:
        endorsements = trust.endorse(evidence, trust.policy)
    except CollateralUnavailable as error:
        checks.that(
            False, f"{evidence.tee}.collateral", Word.COLLATERAL_MISSING, expected="the vendor's endorsements",
            found=str(error), source="docs/guides/collateral.md", hint=error.hint,
        )  # fmt: skip
        return None
    try:
        verdict = judge(
            evidence,
            binding=bundle.parts.binding(),
            endorsements=endorsements,
            policy=trust.policy,
            now=now,
            verifiers=trust.verifiers,
        )
    except EvidenceRefused as error:
        _take(checks, error.checks)
        return None
    _take(checks, verdict.checks)
    return verdict


def _take(checks: Checklist, more: Sequence[object]) -> None:
    for check in more:
        if isinstance(check, Check):
            checks.that(
                check.ok, check.name, check.word, expected=check.expected, found=check.found, source=check.source,
                hint=check.hint,
            )  # fmt: skip


def _check_nonce(parts: BundleParts, nonce: bytes | None, checks: Checklist) -> None:
    same = hmac.compare_digest(parts.nonce or b"", nonce or b"")
    checks.that(
        same, "bundle.nonce", Word.NONCE,
        expected=nonce.hex() if nonce else "none", found=parts.nonce.hex() if parts.nonce else "none", source=SOURCE,
        hint="this bundle was made for another question; somebody replays old answers",
    )  # fmt: skip


def _check_validity(parts: BundleParts, nonce: bytes | None, trust: Trust, now: datetime, checks: Checklist) -> None:
    moment = now.timestamp()
    checks.that(
        parts.not_before - SKEW <= moment <= parts.not_after, "bundle.validity", Word.VALIDITY_PERIOD,
        expected=f"{_said(parts.not_before - SKEW)} to {_said(parts.not_after)}", found=_said(moment), source=SOURCE,
        hint="the clocks of client and server differ, or the bundle is old",
    )  # fmt: skip
    if nonce is None:
        age = moment - parts.not_before
        checks.that(
            age <= trust.policy.max_age, "bundle.age", Word.VALIDITY_PERIOD,
            expected=f"at most {trust.policy.max_age} s", found=f"{age:.0f} s", source="policy, max_age",
            hint="ask with a nonce, which the client does by default, or allow a greater max_age in the policy",
        )  # fmt: skip


def _said(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):
        return f"{moment:.0f} s after 1970"


def _check_model(parts: BundleParts, endpoint: Endpoint, checks: Checklist) -> None:
    model = parts.model
    right = model.name == endpoint.model and endpoint.version in (None, model.version)
    wanted = endpoint.model if endpoint.version is None else f"{endpoint.model} {endpoint.version}"
    checks.that(
        right, "bundle.model", Word.ADMITTED, expected=wanted, found=f"{model.name} {model.version}", source=SOURCE,
        hint="the host answers with another model's keys",
    )  # fmt: skip
    admitted = any(each.archive == model.archive for each in parts.admitted)
    checks.that(
        admitted, "bundle.archive", Word.ADMITTED, expected="an archive of the admitted set",
        found=str(model.archive), source=SOURCE,
        hint="the server's evidence does not vouch for the archive that it serves",
    )  # fmt: skip


def _check_keys(parts: BundleParts, trust: Trust, checks: Checklist) -> tuple[KeyConfig, Pair] | None:
    accepted = ", ".join(KEMS[kem_id].name for kem_id in trust.kems)
    chosen: tuple[KeyConfig, Pair] | None = None
    found, hint = "", ""
    try:
        chosen = KeyList.parse(parts.ohttp_keys).choose(trust.kems)
        KEMS[chosen[0].kem_id].public_key(chosen[0].public_key)
        found = KEMS[chosen[0].kem_id].name
    except (KeyUnknown, MalformedInput) as error:
        chosen, found, hint = None, str(error), error.hint
    checks.that(
        chosen is not None, "bundle.keys", Word.ALGORITHM, expected=f"a key for {accepted}", found=found,
        source="docs/protocol.md, section 3", hint=hint or "the server's key list cannot be used",
    )  # fmt: skip
    return chosen


def _check_admitted(parts: BundleParts, policy: Policy, checks: Checklist) -> None:
    if policy.admitted is None:
        return
    admitted = [AdmittedModel(each.name, each.version, each.archive, each.author) for each in parts.admitted]
    policy.admitted.appraise(admitted, checks, configuration=parts.configuration, plugins=[parts.plugins])


def _check_mode(parts: BundleParts, policy: Policy, checks: Checklist) -> None:
    checks.that(
        parts.mode in policy.modes, "bundle.mode", Word.ADMITTED,
        expected=" or ".join(policy.modes) or "no mode at all", found=parts.mode, source="docs/protocol.md, section 7",
        hint="in mode fleet the key owner's broker could read what you send; if you trust it with that, add "
        'modes = ["host", "fleet"] to the policy\'s [channel] table',
    )  # fmt: skip


def refusal(endpoint: Endpoint, checks: Sequence[Check]) -> ServerRefused:
    """The error that names what failed, with everything that was looked at."""
    failed = [check for check in checks if not check.ok]
    said = "; ".join(f"{check.name}: expected {check.expected}, found {check.found}" for check in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return ServerRefused(
        f"{endpoint} does not satisfy the policy, nothing was sent to it: {said}{more}",
        checks=tuple(checks),
        hint=next((check.hint for check in failed if check.hint), ""),
    )
