"""NVIDIA reference integrity manifests (RIM): a SWID tag with one enveloped XML signature.

Reading signed XML is where verifiers fail, so the rules are narrow (docs/adr/0039): no DTD, entity,
comment, processing instruction or ``xml:`` attribute; exactly one Signature, a child of the root, with
exactly one Reference to the whole document (URI ``""``) and the two transforms in their order. Values
are parsed anew out of the very octets whose digest was compared, never out of the document as it came.

Without ``xml:`` attributes, C14N 1.1 writes what C14N 1.0 writes (W3C xml-c14n11, section 2.4), and
libxml2 does the latter.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.x509 import Certificate

from strongroom.errors import EvidenceMalformed
from strongroom.evidence.certificates import LONGEST_CHAIN, parse_certificate
from strongroom.evidence.ecdsa import verifies

LONGEST_RIM = 1 << 20
_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_XML = "{http://www.w3.org/XML/1998/namespace}"
_C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
ALGORITHMS = (
    ("CanonicalizationMethod", _C14N11),
    ("SignatureMethod", "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"),
    ("Transform", "http://www.w3.org/2000/09/xmldsig#enveloped-signature"),
    ("Transform", _C14N11),
    ("DigestMethod", "http://www.w3.org/2001/04/xmldsig-more#sha384"),
)
"""Element → algorithm, in document order: what a RIM's signature has to name, and nothing else."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One active reference value: any of the alternatives is good."""

    name: str
    alternatives: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rim:
    """What a manifest says, read from authenticated octets."""

    product: str
    version: str
    edition: str
    references: Mapping[int, Reference]
    """Measurement index (from 0; block index less one) → reference value. Active ones only."""

    @classmethod
    def parse(cls, octets: bytes) -> Rim:
        """From a RIM without its signature; raises `EvidenceMalformed`."""
        document = parse_xml(octets)
        if document.tag != f"{_SWID}SoftwareIdentity":
            raise EvidenceMalformed("RIM: not a SWID tag")
        meta, payload = _only(document, f"{_SWID}Meta"), _only(document, f"{_SWID}Payload")
        references: dict[int, Reference] = {}
        indices = set()
        for resource in payload:
            index, reference = _reference(resource)
            if index in indices:
                raise EvidenceMalformed(f"RIM: measurement {index} stands twice")
            indices.add(index)
            if reference is not None:
                references[index] = reference
        return cls(meta.get("product", ""), meta.get("colloquialVersion", ""), meta.get("edition", ""), references)


def _reference(resource: Any) -> tuple[int, Reference | None]:
    index, active, count = (resource.get(name, "") for name in ("index", "active", "alternatives"))
    if resource.tag != f"{_SWID}Resource" or resource.get("type") != "Measurement" or len(resource):
        raise EvidenceMalformed("RIM: its payload holds something other than measurements")
    if not re.fullmatch(r"\d{1,3}", index) or not re.fullmatch(r"\d{1,2}", count) or active not in ("True", "False"):
        raise EvidenceMalformed(f"RIM: measurement {index!r} has no index, count or activity")
    size = resource.get("size", "")
    hashes_found = {name: value for name, value in resource.attrib.items() if name.startswith(_HASH)}
    values = [hashes_found.pop(f"{_HASH}{place}", "") for place in range(int(count))]
    well = all(re.fullmatch(r"(?:[0-9a-fA-F]{2})+", value) and str(len(value) // 2) == size for value in values)
    if not values or hashes_found or not well:
        raise EvidenceMalformed(f"RIM: measurement {index} does not hold {count} values of {size} bytes")
    if active == "False":
        return int(index), None
    return int(index), Reference(resource.get("name", ""), tuple(map(bytes.fromhex, values)))


@dataclass(frozen=True, slots=True)
class SignedRim:
    """A manifest as it came, taken apart for verification."""

    content: bytes = field(repr=False)
    """The canonical document without its signature: what the digest is over, and what `Rim.parse` reads."""
    digest: bytes
    """SHA-384 that the signature states."""
    signed_info: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    chain: tuple[Certificate, ...] = field(repr=False)
    """The signer first."""
    algorithms: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, octets: bytes) -> SignedRim | None:
        """From XML; None where it does not hold the one signature that a RIM has to have.

        Raises `EvidenceMalformed` for what is no XML of the narrow kind that the module describes.
        """
        document = parse_xml(octets)
        signature = document.find(f"{_DS}Signature")
        if signature is None or sum(1 for _ in document.iter(f"{_DS}Signature")) != 1:
            return None
        if [each.tag for each in signature] != [f"{_DS}{name}" for name in ("SignedInfo", "SignatureValue", "KeyInfo")]:
            return None
        signed_info, value, key_info = signature
        shape = [each.tag.removeprefix(_DS) for each in signed_info.iter()]
        if shape != _SHAPE or signed_info.find(f"{_DS}Reference").attrib != {"URI": ""}:
            return None
        algorithms = tuple(
            (each.tag.removeprefix(_DS), each.get("Algorithm", ""))
            for each in signed_info.iter()
            if each.tag.removeprefix(_DS) in {name for name, _ in ALGORITHMS}
        )
        return cls(
            content=_without_signature(document),
            digest=_base64(signed_info.find(f".//{_DS}DigestValue"), "digest"),
            signed_info=_canonical(signed_info),
            signature=_base64(value, "signature"),
            chain=_chain(key_info),
            algorithms=algorithms,
        )

    @property
    def whole(self) -> bool:
        """Whether the stated digest is that of the content."""
        return hmac.compare_digest(hashlib.sha384(self.content).digest(), self.digest)

    @property
    def signed(self) -> bool:
        """Whether the first certificate's key signed the stated digest."""
        return verifies(self.chain[0].public_key(), self.signature, self.signed_info, hashes.SHA384())


_SHAPE = [
    "SignedInfo", "CanonicalizationMethod", "SignatureMethod", "Reference", "Transforms", "Transform", "Transform",
    "DigestMethod", "DigestValue",
]  # fmt: skip


def parse_xml(octets: bytes) -> Any:
    """The root element of a document of the narrow kind above; raises `EvidenceMalformed`.

    The parser fetches nothing, loads no DTD, expands no entity and stops at lxml's size limits.
    """
    from lxml import etree

    if len(octets) > LONGEST_RIM:
        raise EvidenceMalformed(f"RIM: {len(octets)} bytes, the limit is {LONGEST_RIM}")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, attribute_defaults=False,
        huge_tree=False, recover=False,
    )  # fmt: skip
    try:
        document = etree.fromstring(octets, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise EvidenceMalformed("RIM: not well-formed XML", hint="fetch the RIM again from the RIM service") from error
    tree = document.getroottree()
    outside = [*document.itersiblings(), *document.itersiblings(preceding=True)]
    if tree.docinfo.internalDTD is not None or outside:
        raise EvidenceMalformed("RIM: a DTD, a comment or a processing instruction stands beside the document")
    for element in document.iter():
        if not isinstance(element.tag, str):
            raise EvidenceMalformed("RIM: a comment, processing instruction or entity stands in the document")
        if any(str(name).startswith(_XML) for name in element.attrib):
            raise EvidenceMalformed("RIM: an xml: attribute, which canonical forms treat differently")
    return document


def _canonical(element: Any) -> bytes:
    from lxml import etree

    try:
        octets: bytes = etree.tostring(element, method="c14n", exclusive=False, with_comments=False)
    except etree.LxmlError as error:  # such as a namespace that is a relative address
        raise EvidenceMalformed("RIM: it has no canonical form") from error
    return octets


def _without_signature(document: Any) -> bytes:
    """The enveloped-signature transform: the Signature element goes, the text after it stays."""
    copy = deepcopy(document)
    signature = copy.find(f"{_DS}Signature")
    before = signature.getprevious()
    if before is None:
        copy.text = (copy.text or "") + (signature.tail or "")
    else:
        before.tail = (before.tail or "") + (signature.tail or "")
    copy.remove(signature)
    return _canonical(copy)


def _chain(key_info: Any) -> tuple[Certificate, ...]:
    data = _only(key_info, f"{_DS}X509Data")
    if len(key_info) != 1 or not 1 <= len(data) <= LONGEST_CHAIN:
        raise EvidenceMalformed("RIM: its key information is not one list of certificates")
    if any(each.tag != f"{_DS}X509Certificate" for each in data):
        raise EvidenceMalformed("RIM: its key information holds something other than certificates")
    return tuple(
        parse_certificate(_base64(each, "certificate"), what=f"RIM certificate {place}")
        for place, each in enumerate(data)
    )


def _only(parent: Any, tag: str) -> Any:
    found = parent.findall(tag)
    if len(found) != 1:
        raise EvidenceMalformed(f"RIM: {len(found)} elements {tag} where one is expected")
    return found[0]


def _base64(element: Any, what: str) -> bytes:
    if len(element):
        raise EvidenceMalformed(f"RIM: its {what} holds elements")
    try:
        return b64decode("".join((element.text or "").split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceMalformed(f"RIM: its {what} is not base64") from error
