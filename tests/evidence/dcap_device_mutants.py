"""Systematic mutants of accepted SGX, TDX, NVIDIA and CCA evidence; none of them may be accepted.

What is mutated is what somebody signed or what the relying party expects: bits in every signed region,
lengths, certificates, other machines' endorsements, order, nonces and the clock. What nobody signs and nobody
reads (spacing of JSON and PEM, the copy of the root that a chain carries, ECDSA's second form of one
signature) is left alone: a change there changes nothing.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
from evidence import dcap_device_cases
from evidence.snp_tpm_cases import Case, try_case
from strongroom.encoding import b64
from strongroom.evidence.certificates import parse_chain
from strongroom.evidence.dcap_quote import Quote

Files = dict[str, bytes]
TEES = {"tdx", "sgx", "nvidia", "cca"}


@dataclass(frozen=True)
class Accepted:
    """One accepting verdict of the manifest, as files and parameters."""

    name: str
    tee: str
    files: Files
    params: dict[str, Any]
    expected: bytes | None
    now: datetime

    def accepts(self) -> bool:
        make, verifier = dcap_device_cases.CASES[self.tee]
        evidence, endorsements, table = make(self.files, self.params)
        alone = self.params.get("endorsements_only")
        case = Case(
            self.name, None if alone else evidence, endorsements, table, self.expected, self.now, True, frozenset(),
            None, {}, verifier,
        )  # fmt: skip
        checks, _ = try_case(case)
        return bool(checks.all) and not checks.failed


def accepted_cases(folder: Path) -> list[Accepted]:
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    found = []
    for case in manifest["cases"]:
        for verdict in case["expected"]:
            if case["tee"] in TEES and verdict["verdict"] == "accept":
                roles = {**case["roles"], **verdict["files_override"]}
                files = {role: (folder / case["path"] / name).read_bytes() for role, name in roles.items()}
                expected = case["inputs"].get("report_data", case["inputs"].get("nonce"))
                wanted = None if expected is None else bytes.fromhex(expected)
                when = datetime.fromisoformat(verdict["time"])
                name = f"{case['path']}: {verdict['policy']}"
                found.append(Accepted(name, case["tee"], files, verdict["policy_params"], wanted, when))
    return found


# -- small changes ---------------------------------------------------------------


def flips(octets: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` single bit flips, spread evenly, every bit of a byte in its turn."""
    for step in range(min(count, len(octets) * 8)):
        at = step * len(octets) // count if count <= len(octets) else step % len(octets)
        bit = (step * 5 + step // 8) % 8
        yield f"bit {bit} of byte {at}", octets[:at] + bytes((octets[at] ^ 1 << bit,)) + octets[at + 1 :]


def cuts(octets: bytes, *, least: int = 1) -> Iterator[tuple[str, bytes]]:
    for size in {0, 1, len(octets) // 3, len(octets) // 2, len(octets) - 17, len(octets) - least}:
        if 0 <= size <= len(octets) - least:
            yield f"cut to {size}", octets[:size]


def _der(pem: bytes) -> list[bytes]:
    return [b64decode(each) for each in re.findall(rb"-----BEGIN CERTIFICATE-----(.+?)-----END", pem, re.DOTALL)]


def _pem(ders: list[bytes]) -> bytes:
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + b64encode(der) + b"\n-----END CERTIFICATE-----\n" for der in ders
    )


def chains(pem: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Flips in every certificate below the root, one left out, two exchanged."""
    ders = _der(pem)
    roots = [each.subject == each.issuer for each in parse_chain(pem, what="chain")]
    below = [place for place, is_root in enumerate(roots) if not is_root]
    for place in below:
        for label, der in flips(ders[place], max(count // len(below), 1)):
            yield f"certificate {place}, {label}", _pem([*ders[:place], der, *ders[place + 1 :]])
        yield f"certificate {place} left out", _pem(ders[:place] + ders[place + 1 :])
        if place + 1 < len(ders):
            swapped = [*ders[:place], ders[place + 1], ders[place], *ders[place + 2 :]]
            yield f"certificates {place} and {place + 1} exchanged", _pem(swapped)


# -- per kind of evidence ----------------------------------------------------------


def mutants(case: Accepted, others: list[Accepted], weight: int) -> Iterator[tuple[str, Accepted]]:
    """All mutants of a case; `weight` scales how many bits are flipped."""
    makers = {"tdx": _dcap, "sgx": _dcap, "nvidia": _nvidia, "cca": _cca}
    for label, files in makers[case.tee](case, weight):
        yield label, replace(case, files=files)
    if case.expected is not None:
        for label, expected in (
            *flips(case.expected, weight // 8 or 1),
            ("empty", b""),
            ("longer", case.expected + b"\0"),
        ):
            yield f"expected value, {label}", replace(case, expected=expected)
    for other in others:
        if other.tee == case.tee and other.name.split(":")[0] != case.name.split(":")[0]:
            yield from _swapped(case, other)
    yield from _clocks(case)


def _swapped(case: Accepted, other: Accepted) -> Iterator[tuple[str, Accepted]]:
    """Another machine's file in each role that both have."""
    for role in sorted(set(case.files) & set(other.files) - {"event_log"}):
        wanted = case.params.get("required_rims")
        if role.endswith("_rim") and wanted is not None and role.removesuffix("_rim") not in wanted:
            continue  # a RIM that is not required is not read
        if case.files[role] != other.files[role] and not (case.params.get("endorsements_only")):
            files = {**case.files, role: other.files[role]}
            yield f"{role} of {other.name}", replace(case, files=files)


def _clocks(case: Accepted) -> Iterator[tuple[str, Accepted]]:
    years = {"tdx": (2010, 2018, 2035, 2060), "sgx": (2010, 2018, 2035, 2060), "nvidia": (2010, 2019), "cca": ()}
    found = list(years[case.tee])
    if case.tee == "nvidia" and (case.params.get("required_rims") or "vbios_rim" in case.files) and (
        case.params.get("required_rims") != []
    ):  # fmt: skip
        found += [2035, 2060]
    for year in found:
        yield f"in {year}", replace(case, now=datetime(year, 1, 1, tzinfo=UTC))


def _with(case: Accepted, role: str, changed: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, Files]]:
    for label, octets in changed:
        yield f"{role}, {label}", {**case.files, role: octets}


def _dcap(case: Accepted, weight: int) -> Iterator[tuple[str, Files]]:
    octets = case.files["quote"]
    quote = Quote.parse(octets)
    before_chain = octets.index(quote.pck_chain)
    for label, head in flips(octets[:before_chain], 4 * weight):
        yield f"quote, {label}", {**case.files, "quote": head + octets[before_chain:]}
    whole = octets[: len(octets) - len(quote.trailing)]
    yield from _with(case, "quote", cuts(whole))
    yield "quote, a one at its end", {**case.files, "quote": octets + b"\1"}
    for label, chain in chains(quote.pck_chain, weight):
        yield f"PCK chain, {label}", {**case.files, "quote": replace(quote, pck_chain=chain).serialise()}
    yield from _collateral(case, weight)
    if "event_log" in case.files:
        yield from _event_log(case)


def _collateral(case: Accepted, weight: int) -> Iterator[tuple[str, Files]]:
    document = json.loads(case.files["collateral"])
    changed: list[tuple[str, dict[str, str] | None]] = []
    for name, value in document.items():
        less = {member: each for member, each in document.items() if member != name}
        changed += [(f"without {name}", less), (f"empty {name}", {**document, name: ""})]
        if name.endswith("chain"):
            each_of = ((label, chain.decode()) for label, chain in chains(value.encode(), weight // 4))
        elif name in ("tcb_info", "qe_identity"):
            each_of = ((label, text.decode("latin-1")) for label, text in flips(value.encode(), weight // 2))
        else:
            each_of = ((label, octets.hex()) for label, octets in flips(bytes.fromhex(value), weight // 2))
        changed += [(f"{name}, {label}", {**document, name: text}) for label, text in each_of]
    changed.append(("another member", {**document, "more": ""}))
    changed.append(
        ("CRLs exchanged", {**document, "pck_crl": document["root_ca_crl"], "root_ca_crl": document["pck_crl"]})
    )
    for label, found in changed:
        yield f"collateral, {label}", {**case.files, "collateral": json.dumps(found).encode()}
    yield "no collateral", {role: octets for role, octets in case.files.items() if role != "collateral"}
    yield from _with(case, "collateral", cuts(case.files["collateral"].rstrip()))


def _event_log(case: Accepted) -> Iterator[tuple[str, Files]]:
    events = json.loads(case.files["event_log"])
    for place, event in enumerate(events):
        for label, digest in flips(bytes.fromhex(event["digest"]), 2):
            changed = [*events[:place], {**event, "digest": digest.hex()}, *events[place + 1 :]]
            yield f"event {place}, {label}", {**case.files, "event_log": json.dumps(changed).encode()}
        moved = [*events[:place], {**event, "imr": (event["imr"] + 1) % 4}, *events[place + 1 :]]
        for label, found in (("left out", events[:place] + events[place + 1 :]), ("in another register", moved),
                             ("twice", [*events[: place + 1], *events[place:]])):  # fmt: skip
            yield f"event {place} {label}", {**case.files, "event_log": json.dumps(found).encode()}
    yield from _with(case, "event_log", cuts(case.files["event_log"].rstrip()))


def _nvidia(case: Accepted, weight: int) -> Iterator[tuple[str, Files]]:
    lenient = case.params.get("allow_trailing_bytes")
    if "evidence" in case.files:
        octets = case.files["evidence"]
        signed = octets[:-1] if lenient else octets
        yield from _with(case, "evidence", ((label, each) for label, each in flips(signed, 7 * weight)))
        yield from _with(case, "evidence", cuts(octets, least=2 if lenient else 1))
        if not lenient:
            yield "evidence with a byte more", {**case.files, "evidence": octets + b"\0"}
        yield from _with(case, "cert_chain", chains(case.files["cert_chain"], 3 * weight))
    for role in ("vbios_rim", "driver_rim"):
        wanted = case.params.get("required_rims", ["driver", "vbios"])
        if role in case.files and role.removesuffix("_rim") in wanted:
            yield from _rim(case, role, weight)
            if not case.params.get("endorsements_only"):
                yield f"no {role}", {name: each for name, each in case.files.items() if name != role}


def _rim(case: Accepted, role: str, weight: int) -> Iterator[tuple[str, Files]]:
    octets = case.files[role]
    begin, end = octets.index(b"<ds:Signature "), octets.index(b"<ds:KeyInfo>")
    for label, content in flips(octets[:begin], 6 * weight):
        yield f"{role}, {label}", {**case.files, role: content + octets[begin:]}
    for label, signature in flips(octets[begin:end], 3 * weight):
        if signature.split() != octets[begin:end].split():
            yield f"{role} signature, {label}", {**case.files, role: octets[:begin] + signature + octets[end:]}
    certificates = list(re.finditer(rb"<ds:X509Certificate>(.+?)</ds:X509Certificate>", octets, re.DOTALL))
    for place, found in enumerate(certificates[:-1]):
        for label, der in flips(b64decode(found[1]), weight // 2):
            text = octets[: found.start(1)] + b64encode(der) + octets[found.end(1) :]
            yield f"{role} certificate {place}, {label}", {**case.files, role: text}
    element = octets[begin : octets.index(b"</ds:Signature>") + len(b"</ds:Signature>")]
    wrapped = octets.replace(element, b"", 1)
    yield f"{role} unsigned", {**case.files, role: wrapped}
    yield f"{role} signed twice", {**case.files, role: octets.replace(element, element + element, 1)}
    yield f"{role} in a wrapper", {**case.files, role: b"<SoftwareIdentity>" + octets + b"</SoftwareIdentity>"}
    yield f"{role} with a DTD", {**case.files, role: b"<!DOCTYPE x [<!ENTITY e 'x'>]>" + octets}
    yield f"{role} with a comment", {**case.files, role: octets.replace(element, b"<!-- x -->" + element, 1)}
    first = octets.index(b'active="True"')
    yield f"{role} with a value less", {**case.files, role: octets[:first] + b'active="False"' + octets[first + 13 :]}
    yield from _with(case, role, cuts(octets.rstrip()))


def _cca(case: Accepted, weight: int) -> Iterator[tuple[str, Files]]:
    outer = cbor2.loads(case.files["token"])
    members = dict(outer.value)

    def token(changed: dict[int, bytes]) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(399, changed))

    for key, octets in members.items():
        array = list(cbor2.loads(octets).value)
        for place in (0, 2, 3):
            for label, part in flips(array[place], 4 * weight if place == 2 else 2 * weight):
                changed = [*array[:place], part, *array[place + 1 :]]
                found = cbor2.dumps(cbor2.CBORTag(18, [changed[0], dict(changed[1]), *changed[2:]]))
                yield f"token {key}, part {place}, {label}", {**case.files, "token": token({**members, key: found})}
        yield f"token {key} left out", {**case.files, "token": token({k: v for k, v in members.items() if k != key})}
    first, second = members
    yield "tokens exchanged", {**case.files, "token": token({first: members[second], second: members[first]})}
    yield "another member", {**case.files, "token": token({**members, 1: b""})}
    yield "a byte more", {**case.files, "token": case.files["token"] + b"\0"}
    yield from _with(case, "token", cuts(case.files["token"]))
    jwk = json.loads(case.files["cpak"])
    for name in ("x", "y"):
        octets = b64decode(jwk[name].replace("-", "+").replace("_", "/") + "==")
        for label, part in flips(octets, weight):
            text = b64(part).replace("+", "-").replace("/", "_").rstrip("=")
            yield f"cpak {name}, {label}", {**case.files, "cpak": json.dumps({**jwk, name: text}).encode()}
    yield "no cpak", {"token": case.files["token"]}
