"""The vendors' roots of trust, carried as package data and pinned by their bytes.

Roots are never endorsements: nobody hands them in. Each file under ``roots/`` is a
certificate that its vendor publishes; the digest beside its name here is what makes it a
root, so a changed or added file trusts nothing. Intermediates that vendors publish once
for everybody (ASK, ASVK, Google's) lie beside them and still have to chain to a root.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from cryptography.x509 import Certificate

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import parse_certificate

DIGESTS = {
    # AMD: ARK is self-signed, ASK signs VCEKs, ASVK signs VLEKs; one set for each product line.
    "amd_genoa_ark.pem": "96bff94e97e2b7ddf4bf3b9b7f780f94a46b8c51f52abfdcc283be7df36ce405",
    "amd_genoa_ask.pem": "22fea250e0390b22008c9a415f4bd915ae8cef4a240f9d21702e84eb250b9186",
    "amd_genoa_asvk.pem": "9aca5d858c6a4e310e8f91251c6dcdad848e596684b73559ff2fb84cdcc18f1d",
    "amd_milan_ark.pem": "8c109952166431ffad8cb9a3d54f3d20ffbbb58164f0d54be3457bf0ece9e0d8",
    "amd_milan_ask.pem": "8da3a65af1cb7cb90a21fac78431a2431a9ee7811f48c36569c53fb80ad31fee",
    "amd_milan_asvk.pem": "6c0c38ecb76c9f2b2d054f7d806fd5ccfec970599149ce0ed37b1f77fa409ab7",
    "amd_turin_ark.pem": "b69c981fe0216c3d8e682eb6f480c6879497103071e52b5e603178638db8f68d",
    "amd_turin_ask.pem": "c72a54fb75a0a06b0c8dbf68b04893d0891751b94ce4da8231d11fd18a0da944",
    "amd_turin_asvk.pem": "408e14874c1406f08432ffc653f9c9bcffe35dce4926405915d77a278eb493f2",
    # Intel SGX Root CA: PCK, TCB signing and CRL chains of SGX and TDX.
    "intel_sgx_root_ca.der": "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
    # NVIDIA: device identity (GPUs, switches) and reference manifests.
    "nvidia_device_identity_root.pem": "6e6e91e84068cb7de2c715ca73d6df168a16b23d96a895b42e553b297a471bfc",
    "nvidia_rim_root.pem": "afe8d01ab79b451fc6401a00bd8d3cba283e67339bd902e14bb41171eacb99d1",
    # AWS Nitro Enclaves root G1.
    "aws_nitro_root_g1.pem": "6d9c7387b51e74a49407afeec64da2dfe7d4e4665dca28551d62c2a0f885660d",
    # Google Cloud: EK and AK certificates of virtual TPMs.
    "google_gcp_ek_ak_ca_intermediate_v3.der": "c84de8116dfaf5a908f21e810487791f5437e206d00ad8025050cca6bd2ff627",
    "google_gcp_ek_ak_ca_root.der": "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
    "google_tpm_ek_intermediate_2.der": "5d8dbcf8c8053dd8ffad711b6219355032b7122c34cac0f90ccb49def69ec504",
    "google_tpm_ek_root_1.der": "9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf",
}
"""File name → SHA-256 of the file."""


@cache
def root(name: str) -> Certificate:
    """The certificate of that file name (``amd_milan_ark.pem``); raises `EvidenceMalformed`."""
    expected = DIGESTS.get(name)
    if expected is None:
        raise EvidenceMalformed(f"{name} is not a root or intermediate that this release carries")
    octets = (files("strongroom.evidence") / "roots" / name).read_bytes()
    if hashlib.sha256(octets).hexdigest() != expected:
        raise EvidenceMalformed(f"{name}: the installed file was changed", hint="install strongroom again")
    return parse_certificate(octets, what=name)
