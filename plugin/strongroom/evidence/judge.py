"""The one door from evidence to a `Verdict`.

`judge` runs a TEE's verifier, compares the binding, and holds the claims against the
policy. Every check is made and kept; one that failed refuses the whole. No policy, a TEE
that the policy does not name, a verifier that raises or checks nothing: all of them are no.

Only this module makes a `Verdict`, and whatever releases a key or trusts a channel takes
one as an argument, so that the order of the steps stands in the types.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, NoReturn, final

from strongroom.errors import EvidenceMalformed, EvidenceRefused, MalformedInput
from strongroom.evidence.init_data import appraise as appraise_init_data
from strongroom.evidence.init_data import with_init_data
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import (
    Check,
    Checklist,
    Claims,
    DeviceVerifier,
    Endorsements,
    Evidence,
    RevocationStatus,
    Verifier,
    Word,
)

SHORTEST_BINDING = 32
"""Bytes. A digest cut below this would no longer bind."""

Endorse = Callable[[Evidence, Policy | None], Endorsements]
"""Obtains what vendors sign about evidence that will be held against a policy; may read a cache or the network."""

_ONLY_JUDGE = object()
_log = logging.getLogger(__name__)


def no_endorsements(evidence: Evidence, policy: Policy | None) -> Endorsements:
    """For evidence that brings everything it needs."""
    return Endorsements()


@dataclass(frozen=True, slots=True)
class Presented:
    """One device's evidence as it is brought before `judge_composite`."""

    evidence: Evidence
    endorsements: Endorsements = field(default_factory=Endorsements)


@dataclass(frozen=True, slots=True)
class Submodule:
    """What was found about one device: EAR's submodule (``cpu0``, ``gpu0``, …), and whether revocation was judged."""

    claims: Claims
    checks: tuple[Check, ...]
    revocation: RevocationStatus = RevocationStatus.NOT_JUDGED


@final
class Verdict:
    """An appraisal that ended in yes. Made by `judge` and `judge_composite`, by nobody else.

    `submodules` maps EAR names to what was found; `claims` are those of the primary (CPU)
    evidence; `checks` lists everything that was looked at, the devices' with their name in front.
    """

    __slots__ = ("at", "checks", "policy", "submodules")

    at: datetime
    checks: tuple[Check, ...]
    policy: Policy
    submodules: Mapping[str, Submodule]

    def __init__(
        self,
        maker: object,
        *,
        policy: Policy,
        at: datetime,
        submodules: Mapping[str, Submodule],
        checks: Sequence[Check],
    ) -> None:
        if maker is not _ONLY_JUDGE:
            raise TypeError("only judge() makes a Verdict")
        if not submodules or not checks or not all(check.ok for check in checks):
            raise TypeError("a Verdict has submodules and checks, and none of them failed")
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "submodules", MappingProxyType(dict(submodules)))
        object.__setattr__(self, "checks", tuple(checks))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Verdict does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Verdict does not change")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Verdict is not pickled; judge again")

    def __repr__(self) -> str:
        return (
            f"Verdict(policy={self.policy.name!r}, submodules={', '.join(self.submodules)}, {len(self.checks)} checks)"
        )

    @property
    def claims(self) -> Claims:
        """The claims of the primary evidence."""
        return self.submodules["cpu0"].claims

    def serialise(self) -> dict[str, Any]:
        """For ``--json`` and the audit log; bytes become hex."""
        return {
            "accepted": True,
            "policy": self.policy.name,
            "policy_digest": self.policy.digest.hex(),
            "at": f"{self.at:%Y-%m-%dT%H:%M:%SZ}",
            "submodules": {
                name: {
                    "tee": each.claims.tee,
                    "claims": serialise_claims(each.claims),
                    "checks": [check.serialise() for check in each.checks],
                    "revocation": str(each.revocation),
                }
                for name, each in self.submodules.items()
            },
        }


def serialise_claims(claims: Claims) -> dict[str, Any]:
    """Claims as JSON values: ``{name: {"value": …, "provenance": …}}``."""
    return {
        name: {"value": _plain(each.value), "provenance": str(each.provenance)} for name, each in claims.values.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in (value if isinstance(value, list | tuple) else sorted(value))]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else str(value)


def judge(
    evidence: Evidence,
    *,
    binding: bytes,
    endorsements: Endorsements,
    policy: Policy | None,
    now: datetime,
    verifiers: Mapping[str, Verifier],
) -> Verdict:
    """Judge the evidence of one CPU TEE; raises `EvidenceRefused` with every check.

    `binding` is the full digest that the evidence has to carry; `check_binding` says how it is
    compared. `now` is an aware datetime. A policy that demands devices refuses here.
    """
    return judge_composite(
        Presented(evidence, endorsements),
        (),
        binding=binding,
        device_binding=b"",
        policy=policy,
        now=now,
        verifiers=verifiers,
    )


def judge_composite(
    primary: Presented,
    devices: Sequence[Presented],
    *,
    binding: bytes,
    device_binding: bytes,
    policy: Policy | None,
    now: datetime,
    verifiers: Mapping[str, Verifier],
) -> Verdict:
    """Judge a CPU and the devices beside it; raises `EvidenceRefused` with every check.

    The devices were asked first, over `device_binding` (nonce and key); the CPU's `binding` commits
    to their evidence too (docs/release.md, what is hashed into evidence). Each device needs its TEE's
    table in the policy, no device may appear twice, and ``[devices]`` counts them. Evidence that
    holds several devices is taken apart first.
    """
    checks = Checklist()
    named = policy is not None and bool(policy.tees)
    checks.that(
        named, "policy", Word.TEE, expected="a policy that names at least one kind of TEE",
        found=f"policy {policy.name!r}" if policy is not None else "no policy", source="docs/attestation/index.md",
        hint="write a policy: docs/attestation/index.md",
    )  # fmt: skip
    if policy is None or not named:
        raise refusal("no policy accepts anything here", checks.all)
    submodules: dict[str, Submodule] = {}
    claims = _one(primary, binding, policy, now, verifiers, checks, expected_class="cpu")
    if claims is not None:
        submodules["cpu0"] = Submodule(claims, checks.all, checks.revocation)
    found: list[Claims] = []
    everything = list(checks.all)
    for number, device in enumerate(_taken_apart(devices, verifiers)):
        own = Checklist()
        claims = _one(device, device_binding, policy, now, verifiers, own, expected_class="device")
        label = f"device{number}"
        if claims is not None:
            label = f"{claims.device_class}{sum(each.device_class == claims.device_class for each in found)}"
            submodules[label] = Submodule(claims, own.all, own.revocation)
            found.append(claims)
        everything += [replace(check, name=f"{label}/{check.name}") for check in own]
    counted = Checklist()
    count_devices(found, policy, counted)
    everything += counted.all
    if not all(check.ok for check in everything) or "cpu0" not in submodules:
        raise refusal(f"policy {policy.name!r} refuses this {primary.evidence.tee} evidence", everything)
    return Verdict(_ONLY_JUDGE, policy=policy, at=now, submodules=submodules, checks=everything)


def _taken_apart(devices: Sequence[Presented], verifiers: Mapping[str, Verifier]) -> Iterable[Presented]:
    for device in devices:
        verifier = verifiers.get(device.evidence.tee)
        parts: tuple[Evidence, ...] = (device.evidence,)
        if isinstance(verifier, DeviceVerifier):
            try:
                parts = verifier.split(device.evidence)
            except (EvidenceMalformed, MalformedInput):
                parts = (device.evidence,)  # `verify` will say what is wrong with it
        for part in parts or (device.evidence,):
            yield Presented(part, device.endorsements)


def _one(
    presented: Presented,
    binding: bytes,
    policy: Policy,
    now: datetime,
    verifiers: Mapping[str, Verifier],
    checks: Checklist,
    *,
    expected_class: str,
) -> Claims | None:
    claims = examine(presented, policy, now, verifiers, checks)
    if claims is None:
        return None
    check_binding(claims, binding, checks)
    right = (claims.device_class == "cpu") == (expected_class == "cpu")
    checks.that(
        right, f"{claims.tee}.class", Word.TEE, expected=f"evidence about a {expected_class}",
        found=claims.device_class, source="docs/release.md",
        hint="a GPU travels beside a CPU's evidence, never instead of it",
    )  # fmt: skip
    return claims


def examine(
    presented: Presented, policy: Policy, now: datetime, verifiers: Mapping[str, Verifier], checks: Checklist
) -> Claims | None:
    """Everything but the binding: verify and appraise one piece of evidence into `checks`.

    Returns the claims where they could be read; where a check of the verifier itself failed, nobody vouches for them
    and they are self-asserted. This is no judgement: it says nothing about freshness,
    and nothing takes its result for a `Verdict`.
    """
    tee = presented.evidence.tee
    named = checks.that(
        tee in policy.tees and tee in verifiers, "tee", Word.TEE,
        expected="one of " + (", ".join(sorted(policy.tees)) or "none"), found=tee, source=f"policy {policy.name!r}",
        hint=f"this policy does not name [{tee}]; evidence of that kind is refused",
    )  # fmt: skip
    if not named:
        return None
    verifier, own = verifiers[tee], policy.tees[tee]
    before = len(checks.all)
    try:
        claims = with_init_data(verifier.verify(presented.evidence, presented.endorsements, now, own, checks))
        verified = len(checks.all)
        if not all(check.ok for check in checks.all[before:]):
            claims = claims.unproved()
        verifier.appraise(claims, own, checks)
        if claims.device_class == "cpu":
            appraise_init_data(claims, policy.init_data, checks)
    except Exception as error:  # a verifier that breaks has not verified: it counts as no, whatever it raised
        ours = isinstance(error, EvidenceMalformed | MalformedInput)
        said = str(error) if ours else type(error).__name__
        hint = error.hint if isinstance(error, EvidenceMalformed) else ""
        if not ours:
            _log.error("the verifier of %s raised; its evidence is refused", tee, exc_info=error)
        checks.that(
            False, f"{tee}.format", Word.FORMAT, expected=f"evidence that the {tee} verifier can read", found=said,
            source="docs/attestation/", hint=hint or "send the evidence exactly as the attester made it",
        )  # fmt: skip
        return None
    if verified == before or claims.tee != tee:
        checks.that(
            False, f"{tee}.format", Word.FORMAT, expected=f"a {tee} verifier that checks something",
            found=f"claims of {claims.tee} after {verified - before} checks", source="docs/hooks.md",
            hint="the plugin's verifier is broken: tell whoever wrote it",
        )  # fmt: skip
        return None
    return claims


def check_binding(claims: Claims, binding: bytes, checks: Checklist) -> bool:
    """Whether the evidence carries `binding`, in constant time; records ``<tee>.binding``.

    The digest is padded with zeros, or cut, to the width of the hardware's field, never below 32 bytes
    (docs/release.md lists the widths).
    """
    width = len(claims.report_data)
    expected = binding[:width].ljust(width, b"\0")
    same = hmac.compare_digest(claims.report_data, expected)
    return checks.that(
        same and width >= SHORTEST_BINDING and len(binding) >= SHORTEST_BINDING,
        f"{claims.tee}.binding", claims.binding_word, expected=expected.hex() or "at least 32 bytes",
        found=claims.report_data.hex() or "nothing", source="docs/release.md",
        hint="this evidence was made for another request, key or peer: ask for fresh evidence",
    )  # fmt: skip


def count_devices(found: Sequence[Claims], policy: Policy, checks: Checklist) -> None:
    """Whether the devices are distinct and as many as ``[devices]`` says (`Word.DEVICE_COUNT`)."""
    identities = [(each.tee, each.device_id) for each in found]
    if len(found) > 1 or any(policy.devices.values()):
        distinct = len(set(identities)) == len(identities) and (len(found) < 2 or all(each.device_id for each in found))
        checks.that(
            distinct, "devices.distinct", Word.DEVICE_COUNT, expected="each device once, each with an identity",
            found=", ".join(identity or "no identity" for _, identity in identities) or "no device",
            source="docs/release.md", hint="the same device was presented twice, or one that has no identity",
        )  # fmt: skip
    for device_class, wanted in policy.devices.items():
        number = sum(each.device_class == device_class for each in found)
        checks.that(
            number == wanted, f"devices.{device_class}", Word.DEVICE_COUNT, expected=str(wanted), found=str(number),
            source=f"policy {policy.name!r}, [devices]", hint="the policy counts devices",
        )  # fmt: skip


def refusal(what: str, checks: Sequence[Check]) -> EvidenceRefused:
    """An `EvidenceRefused` whose message names what failed and whose hint is the first failure's."""
    failed = [check for check in checks if not check.ok]
    said = "; ".join(f"{check.name}: expected {check.expected}, found {check.found}" for check in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    hint = next((check.hint for check in failed if check.hint), "")
    return EvidenceRefused(f"{what}: {said}{more}", checks=tuple(checks), hint=hint)


def format_checks(checks: Iterable[Check]) -> list[str]:
    """Checks as plain lines for terminals and logs: one a check, and one more for a failure's next step."""
    lines = []
    for check in checks:
        if check.ok:
            lines.append(f"ok    {check.name}: {check.found}")
        else:
            lines.append(f"FAIL  {check.name}: expected {check.expected}, found {check.found}")
            if check.hint:
                lines.append(f"      next: {check.hint}")
    return lines
