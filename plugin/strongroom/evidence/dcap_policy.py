"""What a policy may ask of any DCAP quote's platform: the part that ``[sgx]`` and ``[tdx]`` share.

`TcbPolicy` holds the keys, `appraise_tcb`, `appraise_platform` and `appraise_padding` the judgement; the values come
from `dcap.verify_quote`.
"""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.encoding import Fields
from strongroom.errors import MalformedInput
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set
from strongroom.evidence.dcap import QUOTE_SOURCE, Verified
from strongroom.evidence.dcap_endorsement import COLLATERAL_SOURCE, REFRESH
from strongroom.evidence.dcap_tcb import TcbStatus
from strongroom.evidence.types import Checklist, Word

_PLATFORM = "Intel SGX PCK Certificate and CRL Profile Specification"
_IDENTITIES = {"fmspcs": 6, "ppids": 16, "platform_instance_ids": 16}
"""Policy key → bytes of a value."""


@dataclass(frozen=True, slots=True)
class TcbPolicy:
    """Which TCB and which platforms a policy accepts. `REVOKED` and `NOT_SUPPORTED` cannot be named.

    Lists hold lower-case hex, None asks nothing.
    """

    allowed_statuses: frozenset[TcbStatus] = frozenset({TcbStatus.UP_TO_DATE})
    min_evaluation_number: int = 0
    accepted_advisories: frozenset[str] | None = None
    """Where given, every advisory that touches this platform must be in it."""
    fmspcs: HexSet | None = None
    """Kinds of platform: processor family, model, stepping and platform type, 6 bytes."""
    ppids: HexSet | None = None
    """Processor packages, 16 bytes."""
    platform_instance_ids: HexSet | None = None
    """Platforms, 16 bytes; only certificates of Intel's platform CA have one."""

    @classmethod
    def read(cls, table: Fields) -> TcbPolicy:
        """Take this part's fields out of a verifier's table; raises `MalformedInput`."""
        names = table.texts("allowed_tcb_statuses", default=(TcbStatus.UP_TO_DATE,))
        never = {TcbStatus.REVOKED, TcbStatus.NOT_SUPPORTED}
        try:
            statuses = frozenset(TcbStatus(each) for each in names)
        except ValueError as error:
            raise MalformedInput(f"{table.where}: allowed_tcb_statuses: {error}") from error
        if statuses & never:
            raise MalformedInput(f"{table.where}: allowed_tcb_statuses: {', '.join(statuses & never)} is never allowed")
        advisories = frozenset(table.texts("accepted_advisories")) if table.has("accepted_advisories") else None
        least = table.number("min_tcb_evaluation_data_number", default=0, high=0xFFFF_FFFF)
        return cls(statuses, least, advisories, **{name: _identities(table, name) for name in _IDENTITIES})


def _identities(table: Fields, name: str) -> HexSet | None:
    listed = hex_set(table, name, sizes=(_IDENTITIES[name],))
    if any(not each.strip("0") for each in listed or ()):
        raise MalformedInput(f"{table.where}: {name}: a value of zeros names no platform")
    return listed


def tcb_claims(verified: Verified) -> dict[str, object]:
    """The values that both kinds of quote state about their platform, for `Claims.values`."""
    tcb, pck = verified.tcb, verified.pck
    return {
        "quote_version": verified.quote.version,
        "tee_type": f"{verified.quote.tee_type:#x}",
        "fmspc": pck.fmspc.hex() if pck else "",
        "pce_id": pck.pce_id.hex() if pck else "",
        "ppid": pck.ppid.hex() if pck else "",
        "platform_instance_id": pck.platform_instance_id.hex() if pck else "",
        "tcb_status": str(tcb.overall) if tcb else "",
        "platform_status": str(tcb.platform) if tcb else "",
        "module_status": str(tcb.module) if tcb and tcb.module else "",
        "qe_status": str(tcb.qe) if tcb else "",
        "advisories": list(tcb.advisories) if tcb else [],
        "tcb_date": tcb.date if tcb else "",
        "tcb_evaluation_data_number": tcb.evaluation_number if tcb else 0,
    }


def device_id(verified: Verified) -> str:
    """A stable name of the platform: its instance id, else its PPID (encrypted PPIDs are all zero)."""
    if verified.pck is None:
        return ""
    instance = verified.pck.platform_instance_id or verified.pck.ppid
    return f"intel:{verified.pck.fmspc.hex()}:{instance.hex()}"


def appraise_tcb(verified: Verified, policy: TcbPolicy, checks: Checklist, name: str) -> None:
    """Hold the TCB status, evaluation number and advisories against `policy`."""
    tcb = verified.tcb
    if tcb is None:
        if not checks.failed:  # nothing said why: never let that pass
            checks.that(
                False, f"{name}.tcb", Word.TCB, expected="a TCB status", found="none could be determined",
                source=COLLATERAL_SOURCE, hint=REFRESH,
            )  # fmt: skip
        return
    listed = f" ({', '.join(tcb.advisories)})" if tcb.advisories else ""
    module = f", TDX module {tcb.module}" if tcb.module else ""
    checks.that(
        tcb.overall in policy.allowed_statuses, f"{name}.tcb", Word.TCB,
        expected=" or ".join(sorted(policy.allowed_statuses)) or "nothing: allowed_tcb_statuses is empty",
        found=f"{tcb.overall}: platform {tcb.platform}{module}, QE {tcb.qe}{listed}",
        source="Intel PCS API V4, tcbStatus", hint=_advice(tcb.overall),
    )  # fmt: skip
    if policy.min_evaluation_number:
        checks.that(
            tcb.evaluation_number >= policy.min_evaluation_number, f"{name}.tcb-evaluation", Word.TCB,
            expected=f"tcbEvaluationDataNumber {policy.min_evaluation_number} or later",
            found=str(tcb.evaluation_number), source="Intel PCS API V4, tcbEvaluationDataNumber",
            hint="the collateral is of an older TCB recovery: fetch it again (update=early gives the newest)",
        )  # fmt: skip
    if policy.accepted_advisories is not None:
        open_ones = [each for each in tcb.advisories if each not in policy.accepted_advisories]
        checks.that(
            not open_ones, f"{name}.advisories", Word.TCB, expected="only advisories that the policy accepts",
            found=", ".join(open_ones) or "none beyond those", source="Intel PCS API V4, advisoryIDs",
            hint="apply the platform vendor's firmware, or name the advisory in accepted_advisories",
        )  # fmt: skip


def appraise_platform(verified: Verified, policy: TcbPolicy, checks: Checklist, name: str) -> None:
    """Hold what the PCK certificate says about the platform against the lists of `policy`."""
    claims = tcb_claims(verified)
    for key, allowed, claim, check in (
        ("fmspcs", policy.fmspcs, "fmspc", f"{name}.platform-fmspc"),
        ("ppids", policy.ppids, "ppid", f"{name}.ppid"),
        (
            "platform_instance_ids", policy.platform_instance_ids, "platform_instance_id",
            f"{name}.platform-instance-id",
        ),
    ):  # fmt: skip
        check_allowed(allowed, str(claims[claim]), checks, name=check, word=Word.IDENTITY, key=key, source=_PLATFORM)


def _advice(status: TcbStatus) -> str:
    if status is TcbStatus.NOT_SUPPORTED:
        return "no TCB level fits this firmware: update BIOS, microcode or TDX module; no policy can accept it"
    if status is TcbStatus.REVOKED:
        return "Intel revoked this TCB; no policy can accept it"
    if status in (TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED):
        return "update BIOS, microcode and TDX module, then let the platform get its PCK certificate again"
    return "follow the advisories, then allow this status by name in allowed_tcb_statuses"


def appraise_padding(verified: Verified, checks: Checklist, name: str) -> None:
    """Refuse a buffer that holds anything but zeros after the quote, where nothing else refused it.

    Those bytes are outside every signature and nobody reads them, so this is said only where it alone
    decides (docs/adr/0038).
    """
    if not checks.failed:
        zero = not any(verified.quote.trailing)
        checks.that(
            zero, f"{name}.trailing", Word.FORMAT, expected="nothing but zeros after the quote",
            found=f"{len(verified.quote.trailing)} bytes, {'all' if zero else 'not all'} zero", source=QUOTE_SOURCE,
            hint="cut the buffer to the quote's own length",
        )  # fmt: skip
