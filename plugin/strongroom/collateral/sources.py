"""Where endorsements come from: vendors' services, a PCCS, a folder, a bundle.

A source is asked for one endorsement and answers with its octets, with None ("I have none of that kind or
name"), or raises `CollateralUnavailable`. Nothing that a source says is believed before `trial` judged it, so
plain HTTP to a cache on one's own network loses nothing but privacy.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import requests

from strongroom.collateral.answers import ask, session
from strongroom.collateral.store import read_bundle
from strongroom.collateral.trial import read_rim_answer
from strongroom.collateral.wanted import Wanted
from strongroom.errors import CollateralUnavailable, MalformedInput
from strongroom.evidence.certificates import parse_certificate
from strongroom.evidence.revocation import list_of, ocsp_question, responder_of

INTEL = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD = "https://kdsintf.amd.com"
NVIDIA_RIM = "https://rim.attestation.nvidia.com/v1/rim"
LONGEST_ANSWER = 1 << 22
ENDINGS = (".json", ".der", ".pem", ".xml", ".crl")
"""Of files in a folder source."""


class Source(Protocol):
    """One place to ask."""

    @property
    def name(self) -> str:
        """For people: what `show` and errors call it."""

    def fetch(self, wanted: Wanted) -> bytes | None:
        """The endorsement's octets, or None where this source has no such thing.

        Raises `CollateralUnavailable` where it ought to have it and cannot be reached or read.
        """


@dataclass(slots=True)
class Web:
    """HTTP with patience and limits: three tries, no redirects, 4 MiB at most, a minute for a whole answer."""

    timeout: float = 20.0
    tries: int = 3
    sleep: Callable[[float], None] = time.sleep
    session: requests.Session = field(default_factory=session)

    def get(self, url: str, *, post: bytes | None = None) -> tuple[bytes, Mapping[str, str]] | None:
        """Body and headers; None for 404. Raises `CollateralUnavailable`."""
        trouble = ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(min(2.0**attempt, 8.0))
            try:
                answer = ask(
                    self.session, "GET" if post is None else "POST", url, timeout=self.timeout, limit=LONGEST_ANSWER,
                    data=post, headers={} if post is None else {"Content-Type": "application/ocsp-request"},
                )  # fmt: skip
            except TimeoutError as error:  # it would only drip again
                trouble = str(error)
                break
            except OSError as error:
                trouble = type(error).__name__
                continue
            if answer.status == 404:
                return None
            if answer.status == 200:
                if len(answer.body) > LONGEST_ANSWER:
                    raise CollateralUnavailable(f"{url}: more than {LONGEST_ANSWER} bytes")
                return answer.body, answer.headers
            trouble = f"status {answer.status}"
            if answer.status not in (429, 500, 502, 503, 504):
                break
        raise CollateralUnavailable(
            f"{url}: {trouble}", hint="is the network open to this host? Without one, use a bundle made elsewhere"
        )


@dataclass(slots=True)
class PccsSource:
    """Intel's provisioning certification service, or a PCCS that mirrors it (same paths, API version 4)."""

    url: str = INTEL
    root_crl_url: str | None = INTEL_ROOT_CRL
    """Where the root's CRL lies; None asks the service itself (a PCCS has ``rootcacrl``)."""
    web: Web = field(default_factory=Web)
    early: bool = False
    """Ask for the newest TCB recovery at once (``update=early``), not for the one that is enforced by now."""

    @property
    def name(self) -> str:
        """The service's address."""
        return self.url

    def fetch(self, wanted: Wanted) -> bytes | None:
        """The nine-member collateral document."""
        if wanted.kind != "dcap":
            return None
        tee, fmspc, authority = wanted.words
        base = self.url.rstrip("/")
        more = "update=early" if self.early else ""
        own, common = f"{base}/{tee}/certification/v4", f"{base}/sgx/certification/v4"
        tcb, tcb_headers = self._must(f"{own}/tcb?fmspc={fmspc}" + (f"&{more}" if more else ""))
        identity, identity_headers = self._must(f"{own}/qe/identity" + (f"?{more}" if more else ""))
        crl, crl_headers = self._must(f"{common}/pckcrl?ca={authority}&encoding=der")
        root_crl, _ = self._must(self.root_crl_url or f"{common}/rootcacrl")
        tcb_text, tcb_signature = signed_member(tcb, "tcbInfo")
        identity_text, identity_signature = signed_member(identity, "enclaveIdentity")
        return json.dumps(
            {
                "pck_crl_issuer_chain": _chain(crl_headers, "SGX-PCK-CRL-Issuer-Chain"),
                "root_ca_crl": _hex_of(root_crl),
                "pck_crl": _hex_of(crl),
                "tcb_info_issuer_chain": _chain(tcb_headers, "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
                "tcb_info": tcb_text,
                "tcb_info_signature": tcb_signature,
                "qe_identity_issuer_chain": _chain(identity_headers, "SGX-Enclave-Identity-Issuer-Chain"),
                "qe_identity": identity_text,
                "qe_identity_signature": identity_signature,
            }
        ).encode()

    def _must(self, url: str) -> tuple[bytes, Mapping[str, str]]:
        found = self.web.get(url)
        if found is None:
            raise CollateralUnavailable(f"{url}: not found", hint="does Intel know this platform's FMSPC?")
        return found


def signed_member(octets: bytes, name: str) -> tuple[str, str]:
    """The exact text of a signed JSON member and its signature, from ``{"<name>": {…}, "signature": hex}``.

    The text is cut out and never written again, since the signature is over its bytes. Raises `CollateralUnavailable`.
    """
    try:
        text = octets.decode("utf-8")
        begin = re.match(rf'\s*{{\s*"{name}"\s*:\s*', text)
        if begin is None:
            raise MalformedInput(f"it does not begin with {name}")
        _, end = json.JSONDecoder().raw_decode(text, begin.end())
        after = re.fullmatch(r'\s*,\s*"signature"\s*:\s*"([0-9A-Fa-f]{128})"\s*}\s*', text[end:])
        if after is None:
            raise MalformedInput("no signature of 64 bytes follows it")
    except (ValueError, MalformedInput, RecursionError) as error:
        raise CollateralUnavailable(f"the service's {name} cannot be read: {error}") from error
    return text[begin.end() : end], after[1]


def _chain(headers: Mapping[str, str], *names: str) -> str:
    found = next((headers[name] for name in names if name in headers), None)
    if found is None:
        raise CollateralUnavailable(f"the service's answer has no {names[0]} header")
    return unquote(found)


def _hex_of(octets: bytes) -> str:
    """A CRL as hex: services send DER, or the hex of it."""
    text = octets.strip()
    if re.fullmatch(rb"[0-9A-Fa-f]+", text):
        return text.decode("ascii").lower()
    return octets.hex()


@dataclass(slots=True)
class AmdSource:
    """AMD's key distribution service (AMD 57230 section 4), which limits how often it is asked: VCEKs and CRLs."""

    url: str = AMD
    web: Web = field(default_factory=Web)

    @property
    def name(self) -> str:
        """The service's address."""
        return self.url

    def fetch(self, wanted: Wanted) -> bytes | None:
        """DER."""
        base = self.url.rstrip("/")
        if wanted.kind == "amd-crl":
            kind, product = wanted.words
            found = self.web.get(f"{base}/{kind}/v1/{product}/crl")
        elif wanted.kind == "vcek":
            product, chip, tcb = wanted.words
            parts = tcb.split(".")
            query = "&".join(f"{name}SPL={int(part):02d}" for name, part in zip(_SPL, parts, strict=False))
            found = self.web.get(f"{base}/vcek/v1/{product}/{chip}?{query}")
        else:
            return None
        return None if found is None else found[0]


_SPL = ("bl", "tee", "snp", "ucode", "fmc")


@dataclass(slots=True)
class NvidiaSource:
    """NVIDIA's RIM service."""

    url: str = NVIDIA_RIM
    web: Web = field(default_factory=Web)

    @property
    def name(self) -> str:
        """The service's address."""
        return self.url

    def fetch(self, wanted: Wanted) -> bytes | None:
        """XML."""
        if wanted.kind != "rim":
            return None
        found = self.web.get(f"{self.url.rstrip('/')}/{wanted.words[0]}")
        return None if found is None else read_rim_answer(found[0])


@dataclass(slots=True)
class OcspSource:
    """The responder that a certificate itself names; `rewrite` may send the question elsewhere."""

    rewrite: Callable[[str], str] = str
    web: Web = field(default_factory=Web)

    @property
    def name(self) -> str:
        """For people."""
        return "OCSP"

    def fetch(self, wanted: Wanted) -> bytes | None:
        """A DER response."""
        if wanted.kind != "ocsp" or len(wanted.context) != 2:
            return None
        certificate, issuer = (parse_certificate(each, what="certificate") for each in wanted.context)
        url = responder_of(certificate)
        if url is None or not url.startswith(("http://", "https://")):
            return None
        found = self.web.get(self.rewrite(url), post=ocsp_question(certificate, issuer))
        return None if found is None else found[0]


@dataclass(slots=True)
class CrlSource:
    """The list that a certificate itself names; `rewrite` may look elsewhere."""

    rewrite: Callable[[str], str] = str
    web: Web = field(default_factory=Web)

    @property
    def name(self) -> str:
        """For people."""
        return "CRL"

    def fetch(self, wanted: Wanted) -> bytes | None:
        """DER or PEM."""
        if wanted.kind != "crl" or len(wanted.context) != 2:
            return None
        url = list_of(parse_certificate(wanted.context[0], what="certificate"))
        if url is None or not url.startswith(("http://", "https://")):
            return None
        found = self.web.get(self.rewrite(url))
        return None if found is None else found[0]


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder with one file for each endorsement, at its name or that and one of `ENDINGS`: ``rim/NV_….xml``."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    def fetch(self, wanted: Wanted) -> bytes | None:
        """The file's octets."""
        exact = self.folder.joinpath(*wanted.name.split("/"))
        for path in (exact, *(exact.with_name(exact.name + ending) for ending in ENDINGS)):
            if path.is_file() and path.stat().st_size <= LONGEST_ANSWER:
                octets = path.read_bytes()
                return read_rim_answer(octets) if wanted.kind == "rim" else octets
        return None


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A file that `strongroom collateral bundle` made on a host with a network."""

    path: Path

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def fetch(self, wanted: Wanted) -> bytes | None:
        """The entry's octets."""
        for entry in read_bundle(self.path):
            if entry.wanted.name == wanted.name:
                return entry.octets
        return None


def places(
    *,
    pccs: str | None = None,
    kds: str = AMD,
    rim_service: str = NVIDIA_RIM,
    folders: Sequence[Path] = (),
    bundles: Sequence[Path] = (),
    offline: bool = False,
    early: bool = False,
    web: Web | None = None,
) -> tuple[Source, ...]:
    """Where to look, nearest first: folders, bundles, then the vendors' services or their mirrors unless `offline`."""
    web = web or Web()
    near: tuple[Source, ...] = (*map(FolderSource, folders), *map(BundleSource, bundles))
    if offline:
        return near
    intel = PccsSource(pccs, None, web, early) if pccs else PccsSource(web=web, early=early)
    return (*near, intel, AmdSource(kds, web), NvidiaSource(rim_service, web), OcspSource(web=web), CrlSource(web=web))


def vendors(web: Web | None = None) -> tuple[Source, ...]:
    """The vendors' own services and nothing else."""
    return places(web=web)
