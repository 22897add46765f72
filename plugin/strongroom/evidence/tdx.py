"""Verify an Intel TDX quote: versions 4 and 5, TDX 1.0 and 1.5 bodies, and an event log beside it.

docs/attestation/tdx.md is the page for people. Evidence body (tee ``tdx``), as the key broker protocol
has it: ``{"quote": base64, "cc_eventlog": base64 or null}``. Endorsement: ``collateral``, the
nine-member JSON document of `dcap_collateral`. Signatures, chain and TCB are `dcap`'s.

Azure's verifier uses `verify_td_quote` and `appraise_td`: the same rules for a quote that arrives in
another envelope.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography.x509 import Certificate

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set
from strongroom.evidence.dcap import Verified, parse_quote, verify_quote
from strongroom.evidence.dcap_policy import (
    TcbPolicy,
    appraise_padding,
    appraise_platform,
    appraise_tcb,
    device_id,
    tcb_claims,
)
from strongroom.evidence.dcap_quote import LONGEST_QUOTE, TdReport
from strongroom.evidence.door import at_the_door, base64_field
from strongroom.evidence.launch_policy import LaunchPolicy, orderly
from strongroom.evidence.roots import root
from strongroom.evidence.tdx_event_log import LONGEST_LOG, Event, parse_log, replay
from strongroom.evidence.tdx_launch_log import LAUNCH_REGISTER, launch_events
from strongroom.evidence.types import Checklist, Claim, Claims, Endorsements, Evidence, Provenance, Word

SEPT_VE_DISABLE, MIGRATABLE = 28, 29
_ABI = "Intel TDX Module ABI, section 3.4 (TD attributes)"
_REPORT = "Intel TDX DCAP Quoting Library API, appendix A.3"
_LISTS = {  # policy key → claim; all are SHA-384 or 48-byte fields
    "measurements": "mr_td",
    "mr_seams": "mr_seam",
    "mr_config_ids": "mr_config_id",
    "mr_owners": "mr_owner",
    "mr_owner_configs": "mr_owner_config",
    "rtmr0": "rtmr0",
    "rtmr1": "rtmr1",
    "rtmr2": "rtmr2",
    "rtmr3": "rtmr3",
}
ZERO_48 = bytes(48).hex()


@dataclass(frozen=True, slots=True)
class TdxPolicy:
    """A parsed ``[tdx]`` table; the defaults are the strict ones. Lists hold lower-case hex, None asks nothing."""

    tcb: TcbPolicy = field(default_factory=TcbPolicy)
    azure: bool = False
    """Profile ``azure``: SEPT_VE_DISABLE may be clear, since the paravisor handles #VE."""
    allow_debug: bool = False
    allow_migration: bool = False
    allowed_mr_servicetd: HexSet = frozenset()
    require_event_log: bool = False
    measurements: HexSet | None = None
    mr_seams: HexSet | None = None
    mr_config_ids: HexSet | None = None
    mr_owners: HexSet | None = None
    mr_owner_configs: HexSet | None = None
    rtmr0: HexSet | None = None
    rtmr1: HexSet | None = None
    rtmr2: HexSet | None = None
    rtmr3: HexSet | None = None
    launch: LaunchPolicy = field(default_factory=LaunchPolicy)
    launch_rtmr: int = LAUNCH_REGISTER

    @classmethod
    def read(cls, table: Fields) -> TdxPolicy:
        """Take the TDX keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        profile = table.text("profile", limit=16, default="generic")
        if profile not in ("generic", "azure"):
            raise MalformedInput(f"{table.where}: profile {profile!r} is neither generic nor azure")
        return cls(
            tcb=TcbPolicy.read(table),
            azure=profile == "azure",
            allow_debug=table.truth("allow_debug", default=False),
            allow_migration=table.truth("allow_migration", default=False),
            allowed_mr_servicetd=hex_set(table, "allowed_mr_servicetd", sizes=(48,)) or frozenset(),
            require_event_log=table.truth("require_event_log", default=False),
            launch=LaunchPolicy.read(table),
            launch_rtmr=table.number("launch_rtmr", high=3, default=LAUNCH_REGISTER),
            **{name: hex_set(table, name, sizes=(48,)) for name in _LISTS},
        )


@dataclass(frozen=True, slots=True)
class TdxClaims(Claims):
    """Claims that keep the verified quote they came from, and whether a log was replayed."""

    verified: Verified | None = None
    replayed: bool = False


class TdxVerifier:
    """The verifier of TDX guests; the root is Intel's unless tests hand in another."""

    tee = "tdx"

    def __init__(self, *, intel_root: Certificate | None = None) -> None:
        self._root = intel_root

    def policy(self, table: Fields) -> TdxPolicy:
        """Parse the ``[tdx]`` table of a policy file; raises `MalformedInput`."""
        policy = TdxPolicy.read(table)
        table.done()
        return policy

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: TdxPolicy, checks: Checklist
    ) -> TdxClaims:
        """Signatures, chain, revocation, collateral, TCB level, event log; raises `EvidenceMalformed`."""
        with at_the_door("TDX evidence"):
            read = Fields(evidence.body, where="TDX evidence")
            quote = base64_field(read, "quote", limit=LONGEST_QUOTE)
            log = read.value("cc_eventlog") if read.has("cc_eventlog") else None
            if log is not None:
                log = base64_field(Fields({"cc_eventlog": log}, where=read.where), "cc_eventlog", limit=LONGEST_LOG)
            read.done()
        return verify_td_quote(
            quote, endorsements.get("collateral"), now=now, checks=checks, event_log=log, intel_root=self._root,
            launch_rtmr=policy.launch_rtmr,
        )  # fmt: skip

    def appraise(self, claims: Claims, policy: TdxPolicy, checks: Checklist) -> None:
        """TCB status, attributes, migration and measurements, against `policy`."""
        if not isinstance(claims, TdxClaims):
            raise EvidenceMalformed(f"claims of {claims.tee} are not those of a TD quote")
        appraise_td(claims, policy, checks)


def verify_td_quote(
    quote: bytes,
    collateral: bytes | None,
    *,
    now: datetime,
    checks: Checklist,
    event_log: bytes | None = None,
    intel_root: Certificate | None = None,
    name: str = "tdx",
    launch_rtmr: int = LAUNCH_REGISTER,
) -> TdxClaims:
    """Verify a TD quote's bytes with its collateral; every check is named ``<name>.…``.

    An event log must replay to all four RTMRs; of a quote that is not genuine there is nothing to replay to.
    The claims' `report_data` is the quote's 64 bytes; what it has to be is the caller's business, and so is
    `appraise_td`. Raises `EvidenceMalformed`.
    """
    parsed = parse_quote(quote)
    if not isinstance(parsed.body, TdReport):
        raise EvidenceMalformed("TDX evidence: the quote is an SGX enclave's", hint="present it as tee 'sgx'")
    trusted = intel_root or root("intel_sgx_root_ca.der")
    verified = verify_quote(parsed, collateral, root=trusted, now=now, checks=checks, name=name)
    body = parsed.body
    values = {claim: Claim(value) for claim, value in _values(verified, body).items()}
    replayed = False
    if event_log is not None:
        with at_the_door("TDX event log"):
            events = parse_log(event_log)
        replayed = verified.genuine and _check_replay(events, body, checks, name)
        if replayed:
            values |= _runtime_claims(events) | _launch_claims(events, launch_rtmr, checks, name)
    return TdxClaims(
        tee="tdx", values=values, report_data=body.report_data, device_id=device_id(verified),
        verified=verified, replayed=replayed,
    )  # fmt: skip


def _check_replay(events: tuple[Event, ...], body: TdReport, checks: Checklist, name: str) -> bool:
    good = True
    for index, (told, found) in enumerate(zip(replay(events), body.rtmr, strict=True)):
        good &= checks.that(
            told == found, f"{name}.rtmr{index}-replay", Word.EVENT_LOG, expected=f"RTMR{index} {found.hex()}",
            found=f"the log replays to {told.hex()}", source="Intel TDX Module ABI, TDG.MR.RTMR.EXTEND",
            hint="the log is not this guest's, was cut, or was taken before the last extension: fetch both again",
        )  # fmt: skip
    return good


def _runtime_claims(events: tuple[Event, ...]) -> dict[str, Claim]:
    """Run-time events whose digest covers their value; a name that stands twice says nothing for sure."""
    bound = [event for event in events if event.bound]
    names = [event.name for event in bound]
    return {
        f"event.{event.name}": Claim(event.payload.hex(), Provenance.EVENT_LOG)
        for event in bound
        if names.count(event.name) == 1
    }


def _launch_claims(events: tuple[Event, ...], register: int, checks: Checklist, name: str) -> dict[str, Claim]:
    """What `strongroom launch` extended (docs/attestation/init-data.md), where it is in order."""
    found = launch_events(events)
    if not found or not orderly(
        [(each.register, each.event) for each in found], register, checks, name=name, kind="RTMR"
    ):
        return {}
    return {f"launch.{each.event}": Claim(each.digest, Provenance.EVENT_LOG) for each in found}


def appraise_td(claims: TdxClaims, policy: TdxPolicy, checks: Checklist, *, name: str = "tdx") -> None:
    """Hold a verified TD quote against `policy`. Nothing is read out of a quote that is not genuine."""
    verified = claims.verified
    if verified is None or not isinstance(verified.quote.body, TdReport):
        raise EvidenceMalformed("claims without the quote that they were read from")
    if verified.genuine:
        appraise_tcb(verified, policy.tcb, checks, name)
        appraise_platform(verified, policy.tcb, checks, name)
        _appraise_attributes(verified.quote.body, policy, checks, name)
        _appraise_module(verified.quote.body, checks, name)
        _appraise_service_td(verified.quote.body, policy, checks, name)
        for key, claim in _LISTS.items():
            check_allowed(
                getattr(policy, key), claims[claim], checks, name=f"{name}.{claim.replace('_', '-')}",
                word=Word.MEASUREMENT, key=key, source=_REPORT,
            )  # fmt: skip
        policy.launch.appraise(claims, checks, name=name)
        if policy.require_event_log and not claims.replayed:
            checks.that(
                False, f"{name}.event-log", Word.EVIDENCE_MISSING, expected="an event log that replays",
                found="none", source=_REPORT, hint="let the guest send its CCEL or run-time event log",
            )  # fmt: skip
    appraise_padding(verified, checks, name)


def _appraise_attributes(body: TdReport, policy: TdxPolicy, checks: Checklist, name: str) -> None:
    found = f"TD attributes {body.td_attributes.hex()}"
    checks.that(
        policy.allow_debug or not body.debug, f"{name}.debug", Word.DEBUG, expected="DEBUG (bit 0) clear",
        found=found, source=_ABI, hint="a debug TD's memory is open to its host: launch it without the debug bit",
    )  # fmt: skip
    checks.that(
        policy.allow_migration or not body.attribute(MIGRATABLE), f"{name}.migratable", Word.MIGRATION,
        expected="MIGRATABLE (bit 29) clear", found=found, source=_ABI,
        hint="launch the TD as not migratable, or set allow_migration if you trust its migration TD",
    )  # fmt: skip
    checks.that(
        policy.azure or body.attribute(SEPT_VE_DISABLE), f"{name}.sept-ve-disable", Word.POLICY_BITS,
        expected="SEPT_VE_DISABLE (bit 28) set", found=found, source=_ABI,
        hint='launch the TD with sept-ve-disable=on; on Azure set profile = "azure", where a paravisor handles #VE',
    )  # fmt: skip


def _appraise_module(body: TdReport, checks: Checklist, name: str) -> None:
    checks.that(
        not any(body.mr_signer_seam), f"{name}.mr-signer-seam", Word.MEASUREMENT,
        expected="zero: a TDX module signed by Intel", found=body.mr_signer_seam.hex(), source=_REPORT,
        hint="the TDX module is not Intel's",
    )  # fmt: skip
    checks.that(
        not any(body.seam_attributes), f"{name}.seam-attributes", Word.POLICY_BITS,
        expected="zero: a production TDX module", found=body.seam_attributes.hex(), source=_REPORT,
        hint="the TDX module runs with debug attributes: the host must load the production module",
    )  # fmt: skip


def _appraise_service_td(body: TdReport, policy: TdxPolicy, checks: Checklist, name: str) -> None:
    if body.mr_servicetd is not None:
        found = body.mr_servicetd.hex()
        checks.that(
            found == ZERO_48 or found in policy.allowed_mr_servicetd, f"{name}.mr-servicetd", Word.MIGRATION,
            expected="zero" + "".join(f" or {each}" for each in sorted(policy.allowed_mr_servicetd)), found=found,
            source=_REPORT, hint="a service TD (such as a migration TD) is bound to this guest; if you trust it, "
            "add its value to allowed_mr_servicetd",
        )  # fmt: skip


def _values(verified: Verified, body: TdReport) -> dict[str, object]:
    values: dict[str, object] = {
        **tcb_claims(verified),
        "body_type": verified.quote.body_type or 2,
        "tee_tcb_svn": body.tee_tcb_svn.hex(),
        "mr_seam": body.mr_seam.hex(),
        "mr_signer_seam_zero": not any(body.mr_signer_seam),
        "seam_attributes": body.seam_attributes.hex(),
        "td_attributes": body.td_attributes.hex(),
        "debug": body.debug,
        "xfam": body.xfam.hex(),
        "mr_td": body.mr_td.hex(),
        "measurement": body.mr_td.hex(),
        "mr_config_id": body.mr_config_id.hex(),
        "mr_owner": body.mr_owner.hex(),
        "mr_owner_config": body.mr_owner_config.hex(),
        "rtmr": [register.hex() for register in body.rtmr],
        **{f"rtmr{index}": register.hex() for index, register in enumerate(body.rtmr)},
        "report_data": body.report_data.hex(),
    }
    if body.tee_tcb_svn2 is not None and body.mr_servicetd is not None:
        values |= {"tee_tcb_svn2": body.tee_tcb_svn2.hex(), "mr_servicetd": body.mr_servicetd.hex()}
    return values
