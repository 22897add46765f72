"""Our claims under the names that Trustee's verifiers give them, so that its policies read our tokens.

Trustee has renamed its SNP claims once: flat names (``reported_tcb_bootloader``) and, later, an object
``evidence``; policies in the field use either, so both are there. A name stands here only where the
value is the same fact in the same spelling. docs/attestation/ear.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.snp_report import Tcb
from strongroom.evidence.types import Claims

_TD_BODY = (
    "mr_seam", "seam_attributes", "xfam", "mr_td", "mr_config_id", "mr_owner", "mr_owner_config", "report_data",
    "td_attributes",
)  # fmt: skip
_INTEL = "939a7233f79c4ca9940a0db3957f0607"


def trustee_names(claims: Claims) -> dict[str, Any]:
    """Further members for the object of this TEE in the annotated evidence; empty where none are known."""
    if claims.tee in ("snp", "az-snp-vtpm"):
        return _snp(claims)
    if claims.tee in ("tdx", "az-tdx-vtpm"):
        return _tdx(claims)
    return {}


def _snp(claims: Claims) -> dict[str, Any]:
    policy, platform = (int(str(claims.get(name, "0x0")), 16) for name in ("guest_policy", "platform_info"))
    try:
        reported = Tcb.parse(bytes.fromhex(claims["reported_tcb"]), product=str(claims.get("product", "")))
    except (EvidenceMalformed, ValueError, KeyError):
        return {}
    bits = {
        "abi_minor": policy & 0xFF,
        "abi_major": policy >> 8 & 0xFF,
        "smt_allowed": bool(policy >> 16 & 1),
        "migrate_ma_allowed": bool(policy >> 18 & 1),
        "debug_allowed": bool(policy >> 19 & 1),
        "single_socket_required": bool(policy >> 20 & 1),
    }
    tcb = {
        "bootloader": reported.bootloader, "tee": reported.tee, "snp": reported.snp, "microcode": reported.microcode,
    }  # fmt: skip
    info = {"smt_enabled": bool(platform & 1), "tsme_enabled": bool(platform >> 1 & 1)}
    renamed = {"migrate_ma_allowed": "migrate_ma", "single_socket_required": "single_socket"}
    return {
        **{f"policy_{renamed.get(name, name)}": value for name, value in bits.items()},
        **{f"reported_tcb_{name}": value for name, value in tcb.items()},
        **{f"platform_{name}": value for name, value in info.items()},
        "init_data": claims.get("host_data", ""),
        "evidence": {
            "measurement": claims.get("measurement", ""),
            "report_data": claims.get("report_data", ""),
            "host_data": claims.get("host_data", ""),
            "reported_tcb": tcb,
            "policy": bits,
            "plat_info": info,
        },
    }


def _tdx(claims: Claims) -> dict[str, Any]:
    body: dict[str, Any] = {name: claims[name] for name in _TD_BODY if claims.get(name) is not None}
    registers = claims.get("rtmr")
    if isinstance(registers, list | tuple):
        body |= {f"rtmr_{index}": value for index, value in enumerate(registers)}
    if claims.get("tee_tcb_svn") is not None:
        body["tcb_svn"] = claims["tee_tcb_svn"]
    return {
        "quote": {"header": {"tee_type": "81000000", "vendor_id": _INTEL}, "body": body},
        "td_attributes": {"debug": claims.get("debug", True)},
        "collateral_expiration_status": "0",  # a verdict exists only where all collateral was current
        "advisory_ids": list(claims.get("advisories", ())),
    }


def merged(own: Mapping[str, Any], claims: Claims) -> dict[str, Any]:
    """`own` values with Trustee's names beside them; where a name means two things, Trustee's policies win."""
    return {**own, **trustee_names(claims)}
