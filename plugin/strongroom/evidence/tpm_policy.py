"""What a relying party may ask of a TPM: the ``[tpm]`` table of a policy file.

docs/attestation/tpm.md lists the keys for people.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.x509 import Certificate

from strongroom.encoding import Fields
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.allowlist import HexSet, check_allowed, hex_set, text_set
from strongroom.evidence.certificates import parse_chain
from strongroom.evidence.launch_policy import LaunchPolicy
from strongroom.evidence.roots import root
from strongroom.evidence.tpm_event_log import LAUNCH_PCR
from strongroom.evidence.tpm_quote import PcrPolicy
from strongroom.evidence.types import Checklist, Claims, Word

TRUST = ("certificate", "pinned", "activated")
PIN_SIZES = (22, 32, 34, 50, 66)  # SHA-256 of a SubjectPublicKeyInfo, or a Name with its 2-byte algorithm
GOOGLE_ROOTS = ("google_tpm_ek_root_1.der", "google_gcp_ek_ak_ca_root.der")
GOOGLE_INTERMEDIATES = ("google_tpm_ek_intermediate_2.der", "google_gcp_ek_ak_ca_intermediate_v3.der")


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """A parsed ``[tpm]`` table; the defaults are the strict ones.

    `ak_trust` says why the attestation key is believed: it is certified up to `ak_roots` (Google's unless
    named), it is one of `pinned_aks`, or the broker activated a credential for it against an EK that is
    certified up to `ek_roots`. Certificates in a policy are PEM text; the self-signed among them are roots, and
    where none is, all are.
    """

    ak_trust: str = "certificate"
    pinned_aks: HexSet = frozenset()
    ak_roots: tuple[Certificate, ...] = ()
    ek_roots: tuple[Certificate, ...] = ()
    pcr_bank: str | None = None
    allow_empty_nonce: bool = False
    require_event_log: bool = False
    require_secure_boot: bool = False
    require_revocation_status: bool = False
    pcrs: PcrPolicy = field(default_factory=PcrPolicy)
    launch_pcr: int = LAUNCH_PCR
    launch: LaunchPolicy = field(default_factory=LaunchPolicy)
    gce_projects: frozenset[str] | None = None
    gce_instance_ids: frozenset[str] | None = None

    @classmethod
    def read(cls, table: Fields) -> TpmPolicy:
        """Take the TPM keys out of `table`; the caller refuses what is left. Raises `MalformedInput`."""
        trust = table.text("ak_trust", default="certificate")
        if trust not in TRUST:
            raise MalformedInput(f"{table.where}: ak_trust is {trust!r}, allowed is {', '.join(TRUST)}")
        pinned = hex_set(table, "pinned_aks", sizes=PIN_SIZES)
        if (pinned is not None) != (trust == "pinned"):
            raise MalformedInput(f'{table.where}: pinned_aks goes with ak_trust = "pinned", and neither without')
        bank = table.text("pcr_bank", default="")
        if bank not in ("", "sha1", "sha256", "sha384"):
            raise MalformedInput(f"{table.where}: pcr_bank is {bank!r}, allowed is sha256 or sha384")
        policy = cls(
            ak_trust=trust,
            pinned_aks=pinned or frozenset(),
            ak_roots=_certificates(table, "ak_roots"),
            ek_roots=_certificates(table, "ek_roots"),
            pcr_bank=bank or None,
            allow_empty_nonce=table.truth("allow_empty_nonce", default=False),
            require_event_log=table.truth("require_event_log", default=False),
            require_secure_boot=table.truth("require_secure_boot", default=False),
            require_revocation_status=table.truth("require_revocation_status", default=False),
            pcrs=PcrPolicy.read(table),
            launch_pcr=table.number("launch_pcr", high=23, default=LAUNCH_PCR),
            launch=LaunchPolicy.read(table),
            gce_projects=text_set(table, "gce_projects"),
            gce_instance_ids=text_set(table, "gce_instance_ids"),
        )
        if trust == "activated" and not policy.ek_roots:
            raise MalformedInput(f'{table.where}: ak_trust = "activated" needs ek_roots, the EK makers\' certificates')
        return policy

    def appraise(self, claims: Claims, checks: Checklist) -> None:
        """PCR values, secure boot and what `strongroom launch` recorded, against this policy."""
        self.pcrs.appraise(claims.get("pcrs"), checks, name="tpm")
        if self.require_secure_boot:
            state = claims.get("secure_boot")
            checks.that(
                state is True, "tpm.secure-boot", Word.POLICY_BITS, expected="SecureBoot on, as PCR 7 recorded it",
                found={True: "on", False: "off"}.get(state, "not shown by an event log"),
                source="TCG PC Client Platform Firmware Profile section 3.3.4.8",
                hint="turn secure boot on, and send the event log with the quote",
            )  # fmt: skip
        for key, claim in (("gce_projects", "gce_project"), ("gce_instance_ids", "gce_instance_id")):
            check_allowed(
                getattr(self, key), claims.get(claim, ""), checks, name=f"tpm.{claim.replace('_', '-')}",
                word=Word.IDENTITY, key=key, source="Google Cloud, Shielded VM identity",
            )  # fmt: skip
        self.launch.appraise(claims, checks, name="tpm")


def ak_roots(policy: TpmPolicy) -> tuple[Certificate, ...]:
    """Everything an AK certificate may chain through: the policy's certificates, else Google's."""
    return policy.ak_roots or tuple(root(name) for name in (*GOOGLE_ROOTS, *GOOGLE_INTERMEDIATES))


def _certificates(table: Fields, name: str) -> tuple[Certificate, ...]:
    if not table.has(name):
        return ()
    try:
        return parse_chain(table.text(name, limit=1 << 16).encode(), what=f"{table.where}: {name}")
    except EvidenceMalformed as error:
        raise MalformedInput(str(error)) from error
