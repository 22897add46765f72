"""TCB levels: what Intel says about a platform's, a TDX module's and a quoting enclave's versions.

The types hold the signed JSON of Intel's provisioning certification service ("Get TCB Info" V4,
version 3 documents; "Get Quoting Enclave Identity", version 2 documents). The three functions
at the end are the judgement of docs/attestation/tdx.md section "TCB status": the first level that
fits decides, and the overall status is the worst of platform, module and quoting enclave.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from strongroom.encoding import Fields, parse_json
from strongroom.errors import MalformedInput
from strongroom.evidence.dcap_quote import EnclaveReport, TdReport


class TcbStatus(StrEnum):
    """Intel's words, best first; `NOT_SUPPORTED` is ours for "no level fits" and is never accepted."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    NOT_SUPPORTED = "NotSupported"


_RANK = {status: rank for rank, status in enumerate(TcbStatus)}


def worst(statuses: Iterable[TcbStatus]) -> TcbStatus:
    """The worst of several; out of date and in need of configuration at once has its own word."""
    found = set(statuses)
    bottom = max(found, key=_RANK.__getitem__)
    needs = {TcbStatus.CONFIGURATION_NEEDED, TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED}
    if bottom is TcbStatus.OUT_OF_DATE and found & needs:
        return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
    return bottom


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One level: the least versions it asks for, and what Intel calls whoever has them."""

    sgx: tuple[int, ...]
    """16 SGX component SVNs; empty in levels that judge one enclave or module."""
    tdx: tuple[int, ...]
    """16 TDX component SVNs; empty outside TDX."""
    pce_svn: int
    isv_svn: int
    status: TcbStatus
    date: str
    advisories: tuple[str, ...]

    @classmethod
    def parse(cls, value: object, *, kind: str) -> TcbLevel:
        """One member of ``tcbLevels``; `kind` is ``SGX``, ``TDX`` or ``isv``. Raises `MalformedInput`."""
        read = Fields(value, where="TCB level")
        tcb = read.table("tcb")
        sgx: tuple[int, ...] = ()
        tdx: tuple[int, ...] = ()
        pce_svn = isv_svn = 0
        if kind == "isv":
            isv_svn = tcb.number("isvsvn", high=0xFFFF)
        else:
            sgx, pce_svn = _components(tcb, "sgxtcbcomponents"), tcb.number("pcesvn", high=0xFFFF)
            tdx = _components(tcb, "tdxtcbcomponents") if kind == "TDX" else ()
        try:
            status = TcbStatus(read.text("tcbStatus"))
        except ValueError as error:
            raise MalformedInput(f"TCB level: {error}") from error
        return cls(
            sgx, tdx, pce_svn, isv_svn, status, read.text("tcbDate", limit=32), read.texts("advisoryIDs", default=())
        )


def _components(tcb: Fields, name: str) -> tuple[int, ...]:
    listed = tcb.value(name)
    if not isinstance(listed, list) or len(listed) != 16:
        raise MalformedInput(f"TCB level: {name} is not a list of 16")
    return tuple(Fields(each, where=name).number("svn", high=255) for each in listed)


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """A TDX module by its id (``TDX_03``), signer and attributes, with the levels of its SVN."""

    id: str
    mr_signer: bytes
    attributes: bytes
    mask: bytes
    levels: tuple[TcbLevel, ...]

    @classmethod
    def parse(cls, value: object) -> ModuleIdentity:
        """``tdxModule`` (which has no id and no levels) or one of ``tdxModuleIdentities``."""
        read = Fields(value, where="TDX module identity")
        return cls(
            read.text("id", limit=16, default="TDX"),
            hexes(read, "mrsigner", 48), hexes(read, "attributes", 8), hexes(read, "attributesMask", 8),
            tuple(TcbLevel.parse(each, kind="isv") for each in _list(read, "tcbLevels", optional=True)),
        )  # fmt: skip

    def signed_like(self, body: TdReport) -> bool:
        """Whether the TD report's SEAM module has this signer and, under the mask, these attributes."""
        return self.mr_signer == body.mr_signer_seam and masked(body.seam_attributes, self.mask) == masked(
            self.attributes, self.mask
        )


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """Intel's word on one platform family (FMSPC)."""

    id: str
    issued: datetime
    next_update: datetime
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    module: ModuleIdentity | None
    module_identities: tuple[ModuleIdentity, ...]
    levels: tuple[TcbLevel, ...]

    @classmethod
    def parse(cls, octets: bytes) -> TcbInfo:
        """From the exact signed text. Members unknown here are Intel's to add. Raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="TCB info"), where="TCB info")
        kind = read.text("id", limit=8)
        read.number("version", low=3, high=3)
        read.number("tcbType", high=0)
        if kind not in ("SGX", "TDX"):
            raise MalformedInput(f"TCB info: id {kind!r} is neither SGX nor TDX")
        return cls(
            kind, moment(read, "issueDate"), moment(read, "nextUpdate"), hexes(read, "fmspc", 6),
            hexes(read, "pceId", 2), read.number("tcbEvaluationDataNumber", high=0xFFFF_FFFF),
            ModuleIdentity.parse(read.value("tdxModule")) if kind == "TDX" else None,
            tuple(ModuleIdentity.parse(each) for each in _list(read, "tdxModuleIdentities", optional=True)),
            tuple(TcbLevel.parse(each, kind=kind) for each in _list(read, "tcbLevels")),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """Intel's word on the quoting enclave: who it is, and which of its versions are good."""

    id: str
    issued: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[TcbLevel, ...]

    @classmethod
    def parse(cls, octets: bytes) -> QeIdentity:
        """From the exact signed text; raises `MalformedInput`."""
        read = Fields(parse_json(octets, where="QE identity"), where="QE identity")
        read.number("version", low=2, high=2)
        return cls(
            read.text("id", limit=8), moment(read, "issueDate"), moment(read, "nextUpdate"),
            read.number("tcbEvaluationDataNumber", high=0xFFFF_FFFF),
            hexes(read, "miscselect", 4), hexes(read, "miscselectMask", 4),
            hexes(read, "attributes", 16), hexes(read, "attributesMask", 16),
            hexes(read, "mrsigner", 32), read.number("isvprodid", high=0xFFFF),
            tuple(TcbLevel.parse(each, kind="isv") for each in _list(read, "tcbLevels")),
        )  # fmt: skip

    def differences(self, report: EnclaveReport) -> list[str]:
        """In which ways the quoting enclave's report is not this identity; empty where it is."""
        misc_select = report.misc_select.to_bytes(4, "big")
        wrong = []
        if report.mr_signer != self.mr_signer:
            wrong.append(f"MRSIGNER {report.mr_signer.hex()}")
        if report.isv_prod_id != self.isv_prod_id:
            wrong.append(f"ISVPRODID {report.isv_prod_id}")
        if masked(report.attributes, self.attributes_mask) != masked(self.attributes, self.attributes_mask):
            wrong.append(f"attributes {report.attributes.hex()}")
        if masked(misc_select, self.misc_select_mask) != masked(self.misc_select, self.misc_select_mask):
            wrong.append(f"MISCSELECT {misc_select.hex()}")
        return wrong


# -- matching ------------------------------------------------------------------


def platform_level(info: TcbInfo, cpu_svn: tuple[int, ...], pce_svn: int, td: TdReport | None) -> TcbLevel | None:
    """The first level whose SGX components, PCESVN and (for a TD) TDX components are all reached.

    Where the TDX module states a version (tee_tcb_svn[1] > 0), components 0 and 1 name the module and
    are judged by `module_level` instead.
    """
    for level in info.levels:
        if pce_svn < level.pce_svn or not _reaches(cpu_svn, level.sgx):
            continue
        if td is not None:
            skipped = 2 if td.tee_tcb_svn[1] > 0 else 0
            if not _reaches(tuple(td.tee_tcb_svn[skipped:]), level.tdx[skipped:]):
                continue
        return level
    return None


def _reaches(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return all(have >= want for have, want in zip(found, wanted, strict=True))


def module_identity(info: TcbInfo, td: TdReport) -> ModuleIdentity | None:
    """Which identity speaks of the TD's module: ``TDX_0n`` for version n, ``tdxModule`` for version 0."""
    if td.tee_tcb_svn[1] == 0:
        return info.module
    wanted = f"TDX_{td.tee_tcb_svn[1]:02x}"
    return next((each for each in info.module_identities if each.id.lower() == wanted.lower()), None)


def svn_level(levels: Iterable[TcbLevel], isv_svn: int) -> TcbLevel | None:
    """The first level whose ISVSVN is reached."""
    return next((level for level in levels if isv_svn >= level.isv_svn), None)


# -- fields --------------------------------------------------------------------


def hexes(read: Fields, name: str, size: int) -> bytes:
    """Intel's hex, in either case, of exactly `size` bytes; raises `MalformedInput`."""
    text = read.text(name, limit=2 * size)
    if not re.fullmatch(rf"[0-9A-Fa-f]{{{2 * size}}}", text):
        raise MalformedInput(f"{read.where}: {name} is not {size} bytes in hex")
    return bytes.fromhex(text)


def moment(read: Fields, name: str) -> datetime:
    """A time like ``2025-06-19T10:00:00Z``; raises `MalformedInput`."""
    text = read.text(name, limit=32)
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise MalformedInput(f"{read.where}: {name} {text!r} is not a time in UTC") from error


def masked(octets: bytes, mask: bytes) -> bytes:
    """Bitwise and of two byte strings of one length."""
    return bytes(octet & bits for octet, bits in zip(octets, mask, strict=True))


def _list(read: Fields, name: str, *, optional: bool = False) -> list[Any]:
    if optional and not read.has(name):
        return []
    value = read.value(name)
    if not isinstance(value, list) or len(value) > 256:
        raise MalformedInput(f"{read.where}: {name} is not a list of at most 256")
    return value
