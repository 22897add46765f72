"""What certificates of TPM keys say beside the key: that it is an endorsement key, and whose machine it is in.

TCG "EK Credential Profile" 2.5, section 3.5.16 (extended key usage). Google Cloud writes the identity of the
instance into an extension of its own, 1.3.6.1.4.1.11129.2.1.21, as the structure of its published
``GCEInstanceInfo`` has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import extension
from strongroom.evidence.door import Der, at_the_door

EK_CERTIFICATE = "2.23.133.8.1"
_GCE = "1.3.6.1.4.1.11129.2.1.21"
_UTF8 = 0x0C


def is_endorsement(certificate: x509.Certificate) -> bool:
    """Whether the certificate is for an endorsement key: its extended key usage says so.

    A CA may certify other keys too, and a key that lies in a file activates any credential.
    """
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return any(usage.dotted_string == EK_CERTIFICATE for usage in usages)


@dataclass(frozen=True, slots=True)
class GceInstance:
    """The virtual machine on Google Cloud that a certified key belongs to."""

    zone: str
    project_number: int
    project: str
    instance_id: int
    instance_name: str

    @classmethod
    def read(cls, certificate: x509.Certificate) -> GceInstance | None:
        """From a certificate's extension, None where it has none; raises `EvidenceMalformed`.

        What Google adds behind the name (security properties of the host) is not read.
        """
        value = extension(certificate, _GCE)
        if value is None:
            return None
        with at_the_door("GCE instance information"):
            outer = Der(value, where="GCE instance information")
            read = outer.inside()
            outer.done()
            try:
                zone = read.take(_UTF8).decode()
                number, project = read.integer(), read.take(_UTF8).decode()
                return cls(zone, number, project, read.integer(), read.take(_UTF8).decode())
            except UnicodeDecodeError as error:
                raise EvidenceMalformed("GCE instance information: not UTF-8") from error

    def claims(self) -> dict[str, str]:
        """As claims; numbers as text, because they pass 2^53."""
        return {
            "gce_zone": self.zone,
            "gce_project_number": str(self.project_number),
            "gce_project": self.project,
            "gce_instance_id": str(self.instance_id),
            "gce_instance_name": self.instance_name,
        }
