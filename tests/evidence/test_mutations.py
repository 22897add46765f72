"""Every accepted verdict of the shared manifest, spoilt systematically: no mutant is accepted.

For each verdict: bit flips spread over the files, truncations, extended buffers, the same role's file of
every other case (other chips' reports and endorsements), other nonces and report data, times before and after every
certificate, and chains that are reversed, rotated, shortened or doubled. Positions are spread evenly and
shifted by a digest of the name, so that runs repeat exactly.

Where a byte is under no signature and decides nothing, flipping it is no mutant; `REGIONS` and
`says_the_same` name those bytes and say why.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import pytest
from evidence.run_manifest import KINDS, Verdict, judge_verdict, read_manifest
from strongroom.evidence.certificates import parse_certificate
from strongroom.evidence.nvidia_spdm import SpdmReport
from strongroom.evidence.tpm_event_log import EventLog

SHARED = Path(__file__).resolve().parents[3] / "shared" / "evidence" / "MANIFEST.json"
VERDICTS = read_manifest(SHARED) if SHARED.is_file() else []
ACCEPTED = [verdict for verdict in VERDICTS if verdict.accepted]

NO_ACTION = 3
"""The event type that extends nothing (TCG PC Client Platform Firmware Profile section 10.4.1)."""

LONG_AGO = datetime(1999, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2300, 1, 1, tzinfo=UTC)
TRUST = {"ca", "ek_ca_chain"}
"""Roles that are the relying party's own trust anchors: nobody attacks through them."""
NOT_JUDGED = {"uvm_endorsement"}
HEX_MEMBERS = {"root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"}
PADDED = {"quote", "hcl_report", "runtime_data", "event_log", "ear"}
"""Roles whose buffers may be longer than what they hold, filled up with zeros (a log's with ones too)."""
PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.S)


def spread(size: int, count: int, name: str) -> Iterator[int]:
    """`count` numbers below `size`, evenly spread, from an offset that belongs to `name`."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    for number in range(count):
        yield (start + number * size // count + number) % size


def regions(verdict: Verdict, role: str, octets: bytes) -> list[tuple[int, int]]:
    """The byte ranges of a file that some signature or digest covers, or that are one."""
    if role in TRUST | NOT_JUDGED:
        return []
    if verdict.tee == "tpm" and not judged_bank(verdict, role):
        return []
    if role == "event_log":
        return [(at, at + size) for at, size in digests(verdict, octets)]
    if role == "hcl_report":  # the header and the request's type are the hypervisor's own bookkeeping
        size = int.from_bytes(octets[1232:1236], "little")
        return [(32, 1216), (1228, 1236 + size)]
    if role == "evidence" and lenient(verdict):  # the policy drops what follows the response
        return [(0, len(octets) - len(SpdmReport.parse(octets).trailing))]
    if role == "quote":  # zero padding may follow a quote, and anything may precede nothing
        return [(0, len(octets.rstrip(b"\0")))]
    return [(0, len(octets))]


def judged_bank(verdict: Verdict, role: str) -> bool:
    """Whether a banked role is of the bank that this verdict judges; other banks are not read."""
    bank = role.rpartition("_")[2]
    given = [each for each in ("sha256", "sha384") if f"quote_{each}" in verdict.files]
    return bank not in ("sha1", "sha256", "sha384") or bank == verdict.parameters.get("pcr_bank", given[0])


def digests(verdict: Verdict, log: bytes) -> Iterator[tuple[int, int]]:
    """Where the event digests of a log stand that are replayed; the events' prose is not."""
    if verdict.tee == "tpm":
        bank = verdict.parameters.get("pcr_bank", "sha256")
        for event in EventLog.parse(log).events:
            digest = event.digests.get(bank, b"")
            if any(digest) and event.kind != NO_ACTION:
                yield log.find(digest), len(digest)
    else:
        for found in re.finditer(rb'"digest":\s*"([0-9a-f]{96})"', log):
            yield found.start(1), 96


def says_the_same(role: str, one: bytes, other: bytes) -> bool:
    """Whether two spellings of a text mean exactly the same, so that a flip changed nothing."""
    if role.endswith("_rim"):
        from lxml import etree

        try:
            trees = [etree.fromstring(each, etree.XMLParser(resolve_entities=False)) for each in (one, other)]
            return len({etree.tostring(each, method="c14n") for each in trees}) == 1
        except (etree.XMLSyntaxError, ValueError):
            return False
    if role in ("collateral", "pcrs", "cpak") or role.startswith("pcrs_"):
        try:
            return meaning(json.loads(one)) == meaning(json.loads(other))
        except ValueError:
            return False
    return False


def meaning(value: object) -> object:
    """A JSON value with its hex in one case: Intel's own collateral comes in both."""
    if not isinstance(value, dict):
        return value
    return {name: each.lower() if name in HEX_MEMBERS else each for name, each in value.items()}


def flips(verdict: Verdict, count: int) -> Iterator[tuple[str, Verdict]]:
    places = [
        (role, start, end)
        for role, octets in sorted(verdict.files.items())
        for start, end in regions(verdict, role, octets)
    ]
    total = sum(end - start for _, start, end in places)
    if not total:
        return
    wanted = [(number % 8, at) for number, at in enumerate(spread(total, count, verdict.name))]
    each_role = [(0, sum(e - s for _, s, e in places[:index])) for index in range(len(places))][:60]
    for bit, offset in wanted + each_role:
        at = offset
        for role, start, end in places:
            if at < end - start:
                octets = bytearray(verdict.files[role])
                octets[start + at] ^= 1 << bit
                yield f"flip {role}[{start + at}] bit {bit}", changed(verdict, role, bytes(octets))
                break
            at -= end - start


def changed(verdict: Verdict, role: str, octets: bytes) -> Verdict:
    return replace(verdict, files={**verdict.files, role: octets})


def lengths(verdict: Verdict) -> Iterator[tuple[str, Verdict]]:
    for role, octets in sorted(verdict.files.items()):
        if not regions(verdict, role, octets) or (role, True) == ("evidence", lenient(verdict)):
            continue
        body = octets.rstrip(b"\0\n") if role in PADDED or PEM.search(octets) else octets
        for size in sorted({0, 1, len(body) // 4, len(body) // 2, len(body) - 33, len(body) - 1} - {len(body)}):
            if 0 <= size < len(body):
                yield f"cut {role} to {size}", changed(verdict, role, body[:size])
        padding = b"\0\xff" if role in PADDED or PEM.search(octets) else b""
        for more in (b"\0", b"\xff", b"\x01" * 64, octets[:32], octets):
            if more.strip(padding):
                yield f"extend {role} by {len(more)}", changed(verdict, role, octets + more)


def lenient(verdict: Verdict) -> bool:
    """Whether the policy itself drops what follows the evidence."""
    return bool(verdict.parameters.get("allow_trailing_bytes"))


def swaps(verdict: Verdict) -> Iterator[tuple[str, Verdict]]:
    if verdict.parameters.get("endorsements_only"):
        return  # without evidence another chip's certificate is as good
    seen = set()
    for other in VERDICTS:
        if other.case == verdict.case:
            continue
        for role in sorted(set(verdict.files) & set(other.files)):  # also of another TEE: a quote is a quote
            octets = other.files[role]
            if octets != verdict.files[role] and regions(verdict, role, verdict.files[role]):
                if (role, octets) not in seen:
                    yield f"{role} of {other.case}", changed(verdict, role, octets)
                seen.add((role, octets))


def expectations(verdict: Verdict) -> Iterator[tuple[str, Verdict]]:
    for name, value in verdict.expected.items():
        wrong = [b"\xff" * max(len(value), 32), value + b"\x01", value[:-1] if value else b"\0"]
        wrong += [bytes([value[0] ^ 1]) + value[1:], value[:-1] + bytes([value[-1] ^ 128])] if value else []
        wrong += [value[::-1]] if value[::-1] != value else []
        wrong += [each.expected[name] for each in VERDICTS if each.expected.get(name, value) != value]
        for number, each in enumerate(dict.fromkeys(wrong)):
            yield f"expect another {name} ({number})", replace(verdict, expected={**verdict.expected, name: each})


def times(verdict: Verdict) -> Iterator[tuple[str, Verdict]]:
    dated = [role for role in verdict.files if is_dated(verdict, role)]
    if dated:
        yield "long ago", replace(verdict, at=LONG_AGO)
    if any(ends(verdict, role) for role in dated):
        yield "far ahead", replace(verdict, at=FAR_AHEAD)


def required(verdict: Verdict) -> set[str]:
    """The RIM roles that this verdict reads."""
    default = ["driver", "vbios"] if "driver_rim" in verdict.files else ["vbios"]
    rims = verdict.parameters.get("required_rims", default)
    return {f"{each}_rim" for each in rims} & set(verdict.files)


def is_dated(verdict: Verdict, role: str) -> bool:
    dated = {"vcek", "vlek", "ak_cert", "ek_cert", "collateral", "cert_chain", "attestation_doc", "ear"}
    return role in dated or (role.endswith("_rim") and role in required(verdict))


def ends(verdict: Verdict, role: str) -> bool:
    """Whether a dated role ends before `FAR_AHEAD`: some certificates say 9999, which means never."""
    octets = verdict.files[role]
    if role == "cert_chain":
        octets = PEM.findall(octets)[0]
    elif role not in ("vcek", "vlek", "ak_cert", "ek_cert"):
        return True
    return parse_certificate(octets, what=role).not_valid_after_utc < FAR_AHEAD


def chains(verdict: Verdict) -> Iterator[tuple[str, Verdict]]:
    for role, octets in sorted(verdict.files.items()):
        blocks = PEM.findall(octets)
        if role in TRUST or len(blocks) < 2 or b"".join(blocks) not in octets:
            continue
        orders = {
            "reversed": blocks[::-1],
            "rotated": blocks[1:] + blocks[:1],
            "without its leaf": blocks[1:],
            "leaf alone": blocks[:1],
            "leaf twice": blocks[:1] + blocks,
            "swapped": blocks[:-2] + blocks[-1:] + blocks[-2:-1],
        }
        for name, order in orders.items():
            new = octets.replace(b"".join(blocks), b"".join(order))
            if len(order) < len(blocks) and role == "quote":
                continue  # lengths are cut elsewhere; here only the order changes
            yield f"{role} {name}", changed(verdict, role, new)


def mutants(verdict: Verdict, flip: int, every: int) -> Iterator[tuple[str, Verdict]]:
    """`flip` bit flips, and one in `every` of all other mutants, beginning somewhere else for each verdict."""
    yield from flips(unread(verdict), flip)
    others = chain.from_iterable(kind(unread(verdict)) for kind in (lengths, swaps, expectations, times, chains))
    start = next(spread(every, 1, verdict.name))
    yield from islice(others, start, None, every)


def unread(verdict: Verdict) -> Verdict:
    """The verdict without the files that its policy does not read: spoiling those is no attack."""
    if verdict.tee != "nvidia" or verdict.parameters.get("endorsements_only"):
        return verdict
    files = {role: octets for role, octets in verdict.files.items() if not role.endswith("_rim")}
    return replace(verdict, files=files | {role: verdict.files[role] for role in required(verdict)})


def accepted(verdict: Verdict) -> bool:
    return not judge_verdict(verdict).failed


def survivors(verdict: Verdict, flip: int, every: int = 1) -> tuple[int, list[str]]:
    assert accepted(unread(verdict)), "the verdict itself is accepted, or its mutants show nothing"
    tried, alive = 0, []
    for name, mutant in mutants(verdict, flip, every):
        tried += 1
        if accepted(mutant) and not only_respelt(verdict, mutant):
            alive.append(name)
    return tried, alive


def only_respelt(verdict: Verdict, mutant: Verdict) -> bool:
    """Whether all that changed is how a text is spelt."""
    different = [role for role in mutant.files if mutant.files[role] != verdict.files[role]]
    return bool(different) and all(says_the_same(role, verdict.files[role], mutant.files[role]) for role in different)


def identity(verdict: Verdict) -> bytes:
    """A digest of all that makes a mutant: files, expectations, time."""
    parts = [str(verdict.at)] + [f"{name}={value.hex()}" for name, value in sorted(verdict.expected.items())]
    parts += [f"{role}={hashlib.sha256(octets).hexdigest()}" for role, octets in sorted(verdict.files.items())]
    return hashlib.sha256("\n".join(parts).encode()).digest()


KINDS_OF_MUTANTS = {"flips": 300, "lengths": 8, "swaps": 1, "expectations": 4, "times": 1, "chains": 4}
"""The least number of different ones for each accepted verdict to which the kind applies at all."""


def applies(kind: str, verdict: Verdict) -> bool:
    """Whether there is anything of that kind to spoil."""
    alone = bool(verdict.parameters.get("endorsements_only"))
    roles = {role for role in verdict.files if regions(verdict, role, verdict.files[role])}
    others = {role for each in VERDICTS if each.case != verdict.case for role in each.files}
    return {
        "swaps": bool(roles & others) and not alone,  # nobody else published an EAR
        "expectations": bool(verdict.expected),
        "times": any(is_dated(verdict, role) for role in verdict.files),
        "chains": any(len(PEM.findall(verdict.files[role])) > 1 for role in roles),
    }.get(kind, True)


@pytest.mark.parametrize("verdict", ACCEPTED, ids=lambda verdict: verdict.name)
def test_there_are_hundreds_of_different_mutants_of_every_kind_that_applies(verdict):
    spoilt, own = unread(verdict), identity(unread(verdict))
    makers = {"flips": lambda each: flips(each, 1000), "lengths": lengths, "swaps": swaps}
    makers |= {"expectations": expectations, "times": times, "chains": chains}
    made = {kind: {identity(mutant) for _, mutant in make(spoilt)} - {own} for kind, make in makers.items()}
    assert len(set().union(*made.values())) >= 300
    for kind, least in KINDS_OF_MUTANTS.items():
        assert len(made[kind]) >= least * applies(kind, spoilt), kind
    total = {identity(mutant) for _, mutant in mutants(verdict, 1000, 1)} - {own}
    assert total == set().union(*made.values()), "the long run makes all of them"
    # Every file that is read is spoilt, and each of its signed regions.
    touched = {name.split("[")[0] for name, _ in flips(spoilt, 1000)}
    assert touched == {f"flip {role}" for role in spoilt.files if regions(spoilt, role, spoilt.files[role])}


@pytest.mark.parametrize("verdict", ACCEPTED, ids=lambda verdict: verdict.name)
def test_no_sampled_mutant_is_accepted(verdict):
    tried, alive = survivors(verdict, 10, 6)
    assert alive == []
    assert tried >= 12


@pytest.mark.long
@pytest.mark.parametrize("verdict", ACCEPTED, ids=lambda verdict: verdict.name)
def test_none_of_at_least_a_thousand_mutants_is_accepted(verdict):
    tried, alive = survivors(verdict, 1000)
    assert alive == []
    assert tried >= 1000


def test_every_kind_of_tee_has_an_accepted_verdict_to_spoil():
    assert not VERDICTS or {verdict.tee for verdict in ACCEPTED} == set(KINDS)
