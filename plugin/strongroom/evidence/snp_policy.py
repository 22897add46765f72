"""What a relying party may ask of an SEV-SNP report: the ``[snp]`` table of a policy file.

docs/attestation/sev-snp.md lists the keys for people. The table's reader is also used for the SNP part
of an Azure policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.encoding import Fields
from strongroom.errors import MalformedInput
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set, text_set
from strongroom.evidence.snp_report import ABI, Firmware, SnpReport, Tcb
from strongroom.evidence.types import Checklist, Claims, Word

COMPONENTS = ("fmc", "bootloader", "tee", "snp", "microcode")
_LISTS = {  # policy key → (size in bytes, claim, word)
    "measurements": (48, "measurement", Word.MEASUREMENT),
    "host_data": (32, "host_data", Word.MEASUREMENT),
    "id_key_digests": (48, "id_key_digest", Word.MEASUREMENT),
    "author_key_digests": (48, "author_key_digest", Word.MEASUREMENT),
    "family_ids": (16, "family_id", Word.IDENTITY),
    "image_ids": (16, "image_id", Word.IDENTITY),
    "chip_ids": (64, "chip_id", Word.IDENTITY),
}
_POLICY_SECTION = "AMD 56860 section 4.3"


@dataclass(frozen=True, slots=True)
class MinimumTcb:
    """The least value of each named TCB component; a component that is None is not asked for."""

    fmc: int | None = None
    bootloader: int | None = None
    tee: int | None = None
    snp: int | None = None
    microcode: int | None = None

    @classmethod
    def read(cls, table: Fields, name: str) -> MinimumTcb:
        """From the table of that name, of components to 0..255; all None where it is absent."""
        if not table.has(name):
            return cls()
        inner = table.table(name)
        minimum = cls(**{part: inner.number(part, high=255) if inner.has(part) else None for part in COMPONENTS})
        inner.done()
        return minimum

    def short(self, tcb: Tcb) -> list[str]:
        """The components in which `tcb` is below this minimum, or which it does not have."""
        wanted = {part: getattr(self, part) for part in COMPONENTS}
        return [
            f"{part} {'absent' if (have := getattr(tcb, part)) is None else have} < {least}"
            for part, least in wanted.items()
            if least is not None and (getattr(tcb, part) is None or getattr(tcb, part) < least)
        ]

    def __str__(self) -> str:
        wanted = {part: getattr(self, part) for part in COMPONENTS}
        return " ".join(f"{part}>={least}" for part, least in wanted.items() if least is not None)


@dataclass(frozen=True, slots=True)
class SnpPolicy:
    """A parsed ``[snp]`` table; the defaults are the strict ones. Lists hold lower-case hex, None asks nothing."""

    allow_debug: bool = False
    allow_migration: bool = False
    allow_smt: bool = True
    max_vmpl: int = 0
    allow_vlek: bool = False
    csp_ids: frozenset[str] | None = None
    products: frozenset[str] | None = None
    min_tcb: MinimumTcb = MinimumTcb()
    min_committed_tcb: MinimumTcb = MinimumTcb()
    min_launch_tcb: MinimumTcb = MinimumTcb()
    min_firmware: Firmware | None = None
    min_guest_svn: int = 0
    require_alias_check: bool = False
    require_ciphertext_hiding: bool = False
    require_author_key: bool = False
    require_revocation_status: bool = False
    measurements: HexSet | None = None
    host_data: HexSet | None = None
    id_key_digests: HexSet | None = None
    author_key_digests: HexSet | None = None
    family_ids: HexSet | None = None
    image_ids: HexSet | None = None
    chip_ids: HexSet | None = None

    @classmethod
    def read(cls, table: Fields) -> SnpPolicy:
        """Take the SNP keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        return cls(
            allow_debug=table.truth("allow_debug", default=False),
            allow_migration=table.truth("allow_migration", default=False),
            allow_smt=table.truth("allow_smt", default=True),
            max_vmpl=table.number("max_vmpl", high=3, default=0),
            allow_vlek=table.truth("allow_vlek", default=False),
            csp_ids=text_set(table, "csp_ids"),
            products=text_set(table, "products"),
            min_tcb=MinimumTcb.read(table, "min_tcb"),
            min_committed_tcb=MinimumTcb.read(table, "min_committed_tcb"),
            min_launch_tcb=MinimumTcb.read(table, "min_launch_tcb"),
            min_firmware=_firmware(table),
            min_guest_svn=table.number("min_guest_svn", high=2**32 - 1, default=0),
            require_alias_check=table.truth("require_alias_check", default=False),
            require_ciphertext_hiding=table.truth("require_ciphertext_hiding", default=False),
            require_author_key=table.truth("require_author_key", default=False),
            require_revocation_status=table.truth("require_revocation_status", default=False),
            **{name: hex_set(table, name, sizes=(size,)) for name, (size, _, _) in _LISTS.items()},
        )


def _firmware(table: Fields) -> Firmware | None:
    if not table.has("min_firmware"):
        return None
    text = table.text("min_firmware", limit=11)
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})", text)
    if not found or any(int(part) > 255 for part in found.groups()):
        raise MalformedInput(f'{table.where}: min_firmware is not of the form "1.55.22"')
    return Firmware(*(int(part) for part in found.groups()))


def appraise_report(report: SnpReport, product: str, claims: Claims, policy: SnpPolicy, checks: Checklist) -> None:
    """Hold a verified report against `policy`, one check for each question that was asked."""
    _appraise_guest(report, policy, checks)
    _appraise_tcb(report, product, policy, checks)
    _appraise_platform(report, policy, checks)
    for key, (_, claim, word) in _LISTS.items():
        check_allowed(
            getattr(policy, key), claims[claim], checks, name=f"snp.{claim.replace('_', '-')}", word=word, key=key,
            source=ABI,
        )  # fmt: skip
    check_allowed(policy.products, product, checks, name="snp.product", word=Word.IDENTITY, key="products", source=ABI)
    appraise_provider(claims["csp_id"], policy, checks)


def appraise_provider(csp_id: str, policy: SnpPolicy, checks: Checklist) -> None:
    """Hold the provider that a VLEK names against `policy`; a VCEK names none, and `csp_id` is then empty."""
    check_allowed(
        policy.csp_ids, csp_id, checks, name="snp.csp-id", word=Word.IDENTITY, key="csp_ids",
        source="AMD 57230 section 3.1",
    )  # fmt: skip


def _appraise_guest(report: SnpReport, policy: SnpPolicy, checks: Checklist) -> None:
    found = f"guest policy {report.policy:#x}"
    checks.that(
        policy.allow_debug or not report.debug_allowed, "snp.debug", Word.DEBUG, expected="DEBUG (bit 19) clear",
        found=found, source=_POLICY_SECTION,
        hint="this guest may be debugged, so its memory is open to the host: launch it without the debug bit",
    )  # fmt: skip
    checks.that(
        policy.allow_migration or not report.migration_allowed, "snp.migration", Word.MIGRATION,
        expected="MIGRATE_MA (bit 18) clear", found=found, source=_POLICY_SECTION,
        hint="launch the guest without a migration agent, or allow migration if you trust that agent",
    )  # fmt: skip
    checks.that(
        policy.allow_smt or not report.smt_allowed, "snp.smt", Word.POLICY_BITS, expected="SMT (bit 16) clear",
        found=found, source=_POLICY_SECTION, hint="launch the guest with SMT disallowed, on a host with SMT off",
    )  # fmt: skip
    vmpl = "asked for by the host" if report.vmpl == 0xFFFFFFFF else str(report.vmpl)
    checks.that(
        report.vmpl <= policy.max_vmpl, "snp.vmpl", Word.VMPL, expected=f"at most {policy.max_vmpl}", found=vmpl,
        source="AMD 56860 section 7.3, VMPL",
        hint="a report of a less privileged level speaks for less: ask VMPL 0, or raise max_vmpl knowingly",
    )  # fmt: skip
    checks.that(
        policy.allow_vlek or report.signing_key != "VLEK", "snp.key-kind", Word.POLICY_BITS, expected="a VCEK",
        found=report.signing_key, source="AMD 57230 section 1.2",
        hint="a VLEK speaks for a cloud provider and not for one chip: set allow_vlek and csp_ids if that is enough",
    )  # fmt: skip
    if policy.min_guest_svn:
        checks.that(
            report.guest_svn >= policy.min_guest_svn, "snp.guest-svn", Word.TCB,
            expected=f"at least {policy.min_guest_svn}", found=str(report.guest_svn), source=ABI,
            hint="this is an older guest image: update it",
        )  # fmt: skip
    if policy.require_author_key:
        checks.that(
            bool(report.flags & 1), "snp.author-key", Word.POLICY_BITS, expected="an author key", found="none",
            source=ABI, hint="launch the guest with an ID block that an author key signed",
        )  # fmt: skip


def _appraise_tcb(report: SnpReport, product: str, policy: SnpPolicy, checks: Checklist) -> None:
    for what, octets, minimum in (
        ("reported", report.reported_tcb, policy.min_tcb),
        ("committed", report.committed_tcb, policy.min_committed_tcb),
        ("launch", report.launch_tcb, policy.min_launch_tcb),
    ):
        if str(minimum):
            tcb = Tcb.parse(octets, product=product)
            short = minimum.short(tcb)
            checks.that(
                not short, f"snp.{what}-tcb", Word.TCB, expected=str(minimum),
                found="; ".join(short) or str(tcb), source="AMD 56860 section 2.2",
                hint="the host needs newer firmware (BIOS, microcode, SEV firmware), committed, before it may serve",
            )  # fmt: skip
    least = policy.min_firmware
    if least is not None:
        have = report.current
        checks.that(
            (have.major, have.minor, have.build) >= (least.major, least.minor, least.build), "snp.firmware", Word.TCB,
            expected=f"{least} or later", found=str(have), source=ABI,
            hint=f"SEV firmware {least} or later fixes this; the host's BIOS or its linux-firmware brings it",
        )  # fmt: skip


def _appraise_platform(report: SnpReport, policy: SnpPolicy, checks: Checklist) -> None:
    found = f"PLATFORM_INFO {report.platform_info:#x}"
    if policy.require_alias_check:
        checks.that(
            report.alias_check, "snp.alias-check", Word.POLICY_BITS, expected="ALIAS_CHECK_COMPLETE (bit 5) set",
            found=found, source="AMD-SB-3015 (BadRAM)",
            hint="aliased memory modules were not excluded: update the host's BIOS and SEV firmware",
        )  # fmt: skip
    if policy.require_ciphertext_hiding:
        checks.that(
            report.ciphertext_hiding, "snp.ciphertext-hiding", Word.POLICY_BITS,
            expected="CIPHERTEXT_HIDING_DRAM_EN (bit 4) set", found=found, source="AMD 56860 section 7.3",
            hint="the host can watch the ciphertext of guest memory: enable ciphertext hiding (Genoa and later)",
        )  # fmt: skip
