"""Parsers and writers of the format's parts are exact inverses; joined checksums and trees equal the plain ones."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib

import pytest
from archive.plain_reader import Refused, check_clear, merkle, read_core
from hypothesis import given
from hypothesis import strategies as st
from strongroom.archive.blocks import Grid, Suite, merkle_root
from strongroom.archive.checksum import crc32_join
from strongroom.archive.header import Flag, Header, SignedCore
from strongroom.archive.index import Index, check_name, check_names
from strongroom.archive.manifest import NUMBERS, TRUTHS, ClearMembers
from strongroom.archive.signature import AuthorKey, SignatureKind
from strongroom.archive.slots import Generation, Slot, SlotArea
from strongroom.errors import ArchiveError, ArchiveMalformed, ArchiveUnsupported
from strongroom.keys import ArchiveDigest, AuthorId

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
moments = st.none() | st.integers(0, 2**64 - 1)
digests = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60)

cores = st.builds(
    SignedCore,
    suite=st.sampled_from(Suite),
    chunk_log2=st.integers(12, 26),
    slot_pages=st.integers(1, 32),
    flags=st.sampled_from([Flag(0), Flag.LEASE_REQUIRED]),
    archive_id=digests,
    payload_length=st.integers(1, 1 << 48),
    payload_crc=st.integers(0, 2**32 - 1),
    commitment=digests,
    payload_root=digests,
    clear_root=digests,
    index=st.integers(1, 4).map(lambda pages: bytes(512 * pages + 16)),
    tenant=names,
    lineage=names,
    version=st.integers(1, 2**64 - 1),
    author=digests.map(AuthorId),
    created=moments,
    expiry=moments,
    broker_key=st.none() | st.binary(min_size=1, max_size=100),
    owner=st.none() | texts,
    other=st.dictionaries(st.integers(9, 0x7FFF), st.binary(max_size=20), max_size=3),
)


@given(cores)
def test_a_core_survives_its_octets_and_the_plain_reader_sees_the_same(core):
    octets = core.serialise()
    plain = read_core(octets)

    assert SignedCore.parse(octets) == core
    assert (plain["P"], plain["version"], plain.get("expiry")) == (core.payload_length, core.version, core.expiry)


@given(cores, st.data())
def test_a_core_with_one_octet_changed_is_another_core_or_refused(core, data):
    octets = bytearray(core.serialise())
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ArchiveMalformed, ArchiveUnsupported):
        assert SignedCore.parse(bytes(octets)) != core


@pytest.mark.parametrize(
    ("kind", "error"),
    [(0x0001, ArchiveMalformed), (0x8005, ArchiveMalformed), (0x8007, ArchiveMalformed), (0x8009, ArchiveUnsupported)],
)
def test_a_known_type_with_the_other_bit_is_malformed_and_an_unknown_critical_one_unsupported(kind, error, sealed):
    octets = sealed.core.serialise()
    start = len(octets) if kind == 0x8009 else 160 + len(sealed.core.index)
    changed = octets[:start] + kind.to_bytes(2, "big") + b"\0\1x" + octets[start:]

    with pytest.raises(error, match="critical"):
        SignedCore.parse(changed)
    with pytest.raises(Refused, match="unsupported" if error is ArchiveUnsupported else "malformed"):
        read_core(changed)


@pytest.mark.parametrize(("ids", "good"), [("[2147483647]", True), ("[]", False), ("[2147483648]", False)])
def test_device_ids_are_not_empty_and_have_a_bound(ids, good):
    members = ClearMembers("a", "1")
    config = f"deviceIds: {ids}\n".encode() + members.config
    for reads, error in ((ClearMembers.parse, ArchiveMalformed), (check_clear, Refused)):
        with contextlib.nullcontext() if good else pytest.raises(error):
            reads(members.manifest, config)


@pytest.mark.parametrize("kind", ["ed25519", "hybrid"])
def test_a_header_survives_its_octets(kind, sealed):
    author = AuthorKey.generate(kind)
    from dataclasses import replace

    core = replace(sealed.core, author=author.public.id)
    header = Header(core, author.public, author.sign(core.serialise()))

    assert Header.parse(header.serialise()) == header
    header.verify()


settings_of = st.fixed_dictionaries(
    {},
    optional={
        **{key: st.booleans() for key in TRUTHS},
        **{key: st.integers(0, 2**31 - 1) for key in NUMBERS},
        "deviceType": st.sampled_from(["cpu", "gpu", "neuron"]),
        "deviceIds": st.lists(st.integers(0, 99), min_size=1, max_size=64).map(tuple),
    },
)


@given(names, st.from_regex(r"[A-Za-z0-9._+-]{1,64}", fullmatch=True), settings_of)
def test_readable_members_survive_their_octets(name, version, values):
    members = ClearMembers(name, version, values)

    assert ClearMembers.parse(members.manifest, members.config) == members
    assert {"responseTimeout", "startupTimeout"} <= set(members.settings)


@given(st.binary(max_size=400), st.binary(max_size=200))
def test_no_other_octets_are_readable_members(manifest, config):
    with pytest.raises(ArchiveError):
        ClearMembers.parse(manifest, config)


entries = st.lists(
    st.tuples(st.from_regex(r"[a-z]{1,12}(/[a-z]{1,12}){0,3}", fullmatch=True), st.integers(0, 1 << 44), digests),
    min_size=1,
    max_size=12,
    unique_by=lambda entry: entry[0].split("/")[0],
)


@given(entries, st.none() | st.integers(0, 1 << 44))
def test_an_index_survives_its_octets(files, padding):
    index = Index.build(Grid(12), files, padding)

    assert Index.parse(index.serialise(), Grid(12)) == index


@given(st.text(max_size=40))
def test_a_name_that_passes_stays_inside_its_folder(name):
    from pathlib import PurePosixPath

    try:
        check_name(name)
    except ArchiveMalformed:
        return
    path = PurePosixPath(name)
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert str(path) == name


short = st.lists(st.sampled_from(["a", "A", "b", "a-", "a.", "ß", "ss"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(short, max_size=6))
def test_a_name_twice_or_a_file_that_is_a_folder_is_refused_and_nothing_else(names):
    folded = [name.casefold() for name in names]
    bad = len(set(folded)) < len(folded) or any(a.startswith(b + "/") for a in folded for b in folded)
    try:
        check_names(names)
    except ArchiveMalformed:
        assert bad
    else:
        assert not bad


def test_names_in_deep_folders_need_memory_for_themselves_and_not_for_every_folder():
    names = [f"{number:05d}/" + "/".join(["a"] * 509) for number in range(500)]
    tracemalloc.start()
    check_names(names)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 6 * sum(map(len, names))


slots = st.lists(
    st.builds(Slot, st.integers(0, 2**16 - 1), digests, st.binary(max_size=60)),
    max_size=10,
    unique_by=lambda slot: slot.recipient,
).filter(lambda found: sum(slot.kind == 3 for slot in found) <= 4)


@given(slots, st.integers(1, 2**64 - 1))
def test_a_generation_of_slots_survives_its_octets(found, sequence):
    made = Generation.make(sequence, tuple(found), slot_key=bytes(32), digest=ArchiveDigest(bytes(32)))
    octets = made.serialise(4096)

    assert Generation.parse(octets) == made
    assert SlotArea.parse(octets + bytes(4096)).current == made
    assert SlotArea.parse(bytes(4096) + octets).current == made
    made.check(bytes(32), ArchiveDigest(bytes(32)))


@given(st.lists(st.binary(max_size=70), max_size=6))
def test_checksums_of_parts_join_to_that_of_the_whole(parts):
    crc = 0
    for part in parts:
        crc = crc32_join(crc, zlib.crc32(part), len(part))

    assert crc == zlib.crc32(b"".join(parts))


@given(st.lists(digests, min_size=1, max_size=70))
def test_the_tree_is_that_of_rfc_9162(leaves):
    assert merkle_root(leaves) == merkle(leaves)


def test_signature_kinds_are_ordered_by_strength():
    assert SignatureKind.ED25519 < SignatureKind.HYBRID
