"""Whose signatures count: the package's pinned roots, and those that an owner's policy names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cryptography.x509 import Certificate

from strongroom.evidence.certificates import verify_chain
from strongroom.evidence.policy import Policy
from strongroom.evidence.roots import root
from strongroom.evidence.snp_certificate import Issuers, amd_issuers
from strongroom.evidence.types import Checklist


@dataclass(frozen=True, slots=True)
class Trusted:
    """Vendors' roots, each as a verifier pins it."""

    intel: Certificate | None = None
    nvidia_rim: Certificate | None = None
    nvidia_device: Certificate | None = None
    aws: Certificate | None = None
    google: tuple[Certificate, ...] = ()
    """Roots and intermediates of virtual TPMs; empty for Google's own."""
    tpm_makers: tuple[Certificate, ...] = ()
    """Roots and intermediates of EK certificates: no maker's are ours, a policy names them."""
    verifiers: tuple[Certificate, ...] = ()
    """Whose attestation results a policy believes."""
    amd: Issuers = field(default=amd_issuers)

    def under(self, policy: Policy | None) -> Trusted:
        """These, and those that a policy adds in its owner's name (``[tpm]``, ``[ear]``)."""
        from strongroom.evidence.ear import EarPolicy
        from strongroom.evidence.tpm_policy import TpmPolicy

        tees, trusted = {} if policy is None else policy.tees, self
        if isinstance(tpm := tees.get("tpm"), TpmPolicy):
            trusted = replace(trusted, google=tpm.ak_roots or self.google, tpm_makers=tpm.ek_roots or self.tpm_makers)
        if isinstance(ear := tees.get("ear"), EarPolicy):
            trusted = replace(trusted, verifiers=ear.certificates or self.verifiers)
        return trusted

    @property
    def intel_root(self) -> Certificate:
        """Intel SGX Root CA."""
        return self.intel or root("intel_sgx_root_ca.der")

    @property
    def nvidia_device_root(self) -> Certificate:
        """NVIDIA Device Identity CA."""
        return self.nvidia_device or root("nvidia_device_identity_root.pem")

    @property
    def nvidia_rim_root(self) -> Certificate:
        """NVIDIA's root of reference manifests."""
        return self.nvidia_rim or root("nvidia_rim_root.pem")

    @property
    def aws_root(self) -> Certificate:
        """AWS Nitro Enclaves root G1."""
        return self.aws or root("aws_nitro_root_g1.pem")

    @property
    def google_certificates(self) -> tuple[Certificate, ...]:
        """What an AK certificate on Google Cloud chains through."""
        from strongroom.evidence.tpm_policy import GOOGLE_INTERMEDIATES, GOOGLE_ROOTS

        return self.google or tuple(root(name) for name in (*GOOGLE_ROOTS, *GOOGLE_INTERMEDIATES))


def vouched(
    chain: Sequence[Certificate], roots: Sequence[Certificate], *, understood: frozenset[str] = frozenset()
) -> tuple[Certificate, ...]:
    """`chain` up to its root where the vendor signed every link, whatever the dates; else nothing.

    Evidence comes from strangers and its certificates name addresses: only a vendor's own word sends us to one.
    """
    if not chain:
        return ()
    path = verify_chain(
        chain, roots=roots, now=datetime.now(UTC), checks=Checklist(), name="vouched", understood=understood
    )
    return path or ()
