"""The audit log: RFC 6962 hashing, proofs that hold and lies that do not, notes, tiles on disk."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from contextlib import closing

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.broker import audit, directory, merkle, tiles
from strongroom.broker.audit import AuditLog, Checkpoint, NoteKey, public_octets
from strongroom.broker.proofs import check_proof, prove_consistency
from strongroom.broker.store import Store
from strongroom.errors import AuditError, MalformedInput, StoreError

# The leaves and roots that the Certificate Transparency project tests its trees with: RFC 6962 by other hands.
CT_LEAVES = [
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
]  # fmt: skip
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaves_of(count):
    return [merkle.leaf_hash(bytes([number % 251]) * (number % 7)) for number in range(count)]


def test_roots_are_those_of_certificate_transparency():
    leaves = [merkle.leaf_hash(bytes.fromhex(each)) for each in CT_LEAVES]
    assert [merkle.root_of(leaves[: size + 1]).hex() for size in range(8)] == CT_ROOTS
    assert merkle.root_of([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@settings(deadline=None)  # a busy machine is no finding
@given(size=st.integers(1, 70), index=st.integers(0, 69))
def test_an_inclusion_proof_holds_for_its_entry_and_no_other(size, index):
    index %= size
    leaves = leaves_of(size)
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root_of(leaves)
    merkle.verify_inclusion(leaves[index], index, size, proof, root)
    for wrong in (
        (merkle.leaf_hash(b"other"), index, size, proof, root),
        (leaves[index], (index + 1) % size if size > 1 else 1, size, proof, root),
        (leaves[index], index, size, [*proof, bytes(32)], root),
        (leaves[index], index, size, proof, bytes(32)),
    ):
        with pytest.raises(AuditError):
            merkle.verify_inclusion(*wrong)


@settings(deadline=None)  # a busy machine is no finding
@given(old=st.integers(0, 70), new=st.integers(0, 70))
def test_a_consistency_proof_holds_between_any_two_sizes(old, new):
    old, new = min(old, new), max(old, new)
    leaves = leaves_of(new)
    proof = merkle.consistency_proof(leaves, old) if old else []
    old_root, new_root = merkle.root_of(leaves[:old]), merkle.root_of(leaves)
    merkle.verify_consistency(old, old_root, new, new_root, proof)
    if old:
        altered = [merkle.leaf_hash(b"altered"), *leaves[1:]]
        with pytest.raises(AuditError):
            merkle.verify_consistency(old, merkle.root_of(altered[:old]), new, new_root, proof)
    if old != new and old:
        with pytest.raises(AuditError):
            merkle.verify_consistency(old, old_root, new, new_root, [*proof, bytes(32)])
        with pytest.raises(AuditError):
            merkle.verify_consistency(new, new_root, old, old_root, proof)


# -- notes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private():
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def key(private):
    return NoteKey("keys.example/audit", public_octets(private.public_key()))


def test_a_checkpoint_is_a_signed_note_of_three_lines(private, key):
    note = Checkpoint(key.name, 5, b"\1" * 32).sign(private)
    body, signature = note.split("\n\n")
    assert body == f"keys.example/audit\n5\n{base64.b64encode(bytes([1]) * 32).decode()}"
    assert signature.startswith("— keys.example/audit ") and signature.endswith("\n")
    assert Checkpoint.verify(note, key) == Checkpoint(key.name, 5, b"\1" * 32)


def test_the_example_of_the_note_specification_names_its_key_as_we_do():
    """From the documentation of Go's sumdb/note: the verifier key of a published example."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert NoteKey.parse(text).serialise() == text


def test_a_witness_may_sign_beside_us(private, key):
    note = Checkpoint(key.name, 5, b"\1" * 32).sign(private)
    assert Checkpoint.verify(note + "— witness.example AAAAAAAA\n", key).size == 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.replace("\n5\n", "\n6\n"),
        lambda note: note.replace("\n5\n", "\n05\n"),
        lambda note: note.replace("keys.example", "keys.evil"),
        lambda note: note.replace("—", "-"),
        lambda note: note.replace("\n\n", "\n"),
        lambda note: note[:-10] + "AAAAAAAA\n",
        lambda note: "",
    ],
)
def test_a_note_that_was_touched_is_refused(private, key, spoil):
    with pytest.raises(AuditError):
        Checkpoint.verify(spoil(Checkpoint(key.name, 5, b"\1" * 32).sign(private)), key)


@pytest.mark.parametrize(
    "text", ["", "a+b", "a+00000000+AQ==", "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"]
)
def test_a_verifier_key_that_is_none_is_refused(text):
    with pytest.raises(MalformedInput):
        NoteKey.parse(text)


# -- the log in the store ----------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    store = Store.create(tmp_path / "store.db", bytes(32))
    yield store
    store.close()


@pytest.fixture
def log(store, private):
    return AuditLog(store, private, "keys.example/audit")


def test_every_entry_moves_the_checkpoint(log, key):
    for number in range(5):
        assert log.append({"event": "test", "n": number}) == number
        assert Checkpoint.verify(log.checkpoint(), key).size == number + 1
    assert json.loads(log.entries()[3]) == {"event": "test", "n": 3}


def test_a_rolled_back_transaction_leaves_no_entry(store, log, key):
    log.append({"n": 0})
    with pytest.raises(RuntimeError), store.transaction():
        log.append({"n": 1})
        log.append({"n": 2})
        raise RuntimeError
    log.append({"n": 3})
    assert [json.loads(each)["n"] for each in log.entries()] == [0, 3]
    leaves = [merkle.leaf_hash(each) for each in log.entries()]
    assert Checkpoint.verify(log.checkpoint(), key).root == merkle.root_of(leaves)


def test_an_entry_of_another_process_after_a_rollback_is_not_taken_for_ours(store, log, private, key, tmp_path):
    """`broker administrator` writes to the log of a running broker; the sizes alone would agree here."""
    log.append({"n": 0})
    with pytest.raises(RuntimeError), store.transaction():
        log.append({"n": "rolled back"})
        raise RuntimeError
    other = Store(store.path, bytes(32))
    AuditLog(other, private, log.key.name).append({"n": "another process"})
    other.close()
    log.append({"n": 2})
    entries = log.entries()
    assert [json.loads(each)["n"] for each in entries] == [0, "another process", 2]
    assert Checkpoint.verify(log.checkpoint(), key).root == merkle.root_of([merkle.leaf_hash(each) for each in entries])
    AuditLog(store, private, log.key.name)


@pytest.mark.parametrize("at_once", [1, 3, 5, 100])
def test_a_long_log_is_verified_piece_by_piece(store, log, private, monkeypatch, at_once):
    monkeypatch.setattr(audit, "AT_ONCE", at_once)
    for number in range(11):
        log.append({"n": number})
    again = AuditLog(store, private, log.key.name)
    assert again.append({"n": 11}) == 11
    assert again._is_checkpoint(again._reread(12))
    store.write("UPDATE audit SET entry = CAST('{}' AS BLOB) WHERE number = 7")
    with pytest.raises(AuditError, match="entry 7"):
        AuditLog(store, private, log.key.name)


def test_an_entry_larger_than_a_bundle_holds_is_refused(log):
    with pytest.raises(AuditError, match="limit"):
        log.append({"x": "y" * 70000})


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE audit SET leaf = randomblob(32) WHERE number = 1",
        "DELETE FROM audit WHERE number = 1",
        "DELETE FROM audit WHERE number = 4",
        "UPDATE audit SET entry = CAST('{}' AS BLOB) WHERE number = 2",
    ],
)
def test_a_broker_does_not_start_on_a_log_that_was_touched(store, log, private, tamper):
    for number in range(5):
        log.append({"n": number})
    store.write(tamper)
    with pytest.raises(AuditError):
        AuditLog(store, private, "keys.example/audit")


def forged(store, number):
    """Write an entry of one's own as whoever has the file, and no key, can."""
    entry = b'{"decision":"refused","event":"release"}'
    store.write("INSERT OR REPLACE INTO audit VALUES (?, ?, ?)", number, entry, merkle.leaf_hash(entry))


def beyond_the_checkpoint(store):
    forged(store, 5)


def without_a_checkpoint(store):
    store.write("DELETE FROM checkpoints")


def rewritten_without_a_checkpoint(store):
    forged(store, 3)
    store.write("DELETE FROM checkpoints")


def cut_without_a_checkpoint(store):
    store.write("DELETE FROM audit WHERE number >= 3")
    store.write("DELETE FROM checkpoints")


def rewritten_under_an_unsigned_checkpoint(store):
    forged(store, 5)
    root = merkle.root_of([row[0] for row in store.rows("SELECT leaf FROM audit ORDER BY number")])
    note = Checkpoint("keys.example/audit", 6, root).sign(Ed25519PrivateKey.generate())
    store.write("UPDATE checkpoints SET size = 6, note = ?", note)


TOUCHES = pytest.mark.parametrize(
    "touch",
    [
        beyond_the_checkpoint,
        without_a_checkpoint,
        rewritten_without_a_checkpoint,
        cut_without_a_checkpoint,
        rewritten_under_an_unsigned_checkpoint,
    ],
)


@TOUCHES
def test_without_the_brokers_key_nobody_adds_cuts_or_rewrites_a_log_that_is_opened(store, log, private, touch):
    for number in range(5):
        log.append({"n": number})
    touch(store)
    with pytest.raises(AuditError):
        AuditLog(store, private, log.key.name)


@TOUCHES
def test_a_running_broker_signs_nothing_over_a_log_that_was_touched(store, log, touch):
    for number in range(5):
        log.append({"n": number})
    touch(store)
    before = store.rows("SELECT * FROM checkpoints")
    for _ in range(2):
        with pytest.raises(AuditError):
            log.append({"n": 5})
    assert store.rows("SELECT * FROM checkpoints") == before


def test_a_log_that_grows_while_it_is_verified_is_no_finding(store, log, private, monkeypatch):
    """`broker administrator` opens the store of a broker that runs, and goes on writing."""
    for number in range(5):
        log.append({"n": number})
    other, appended = Store(store.path, bytes(32)), []

    def leaf(entry):
        if not appended:
            appended.append(log)
            log.append({"n": 5})
        return merkle.leaf_hash(entry)

    monkeypatch.setattr(audit, "leaf_hash", leaf)
    again = AuditLog(other, private, log.key.name)
    assert again.append({"n": 6}) == 6
    other.close()


def test_a_broker_whose_whole_log_was_deleted_does_not_start(tmp_path):
    directory.init(tmp_path / "broker")
    with closing(sqlite3.connect(tmp_path / "broker" / "store.db")) as store, store:
        store.execute("DELETE FROM audit")
        store.execute("DELETE FROM checkpoints")
    with pytest.raises(AuditError, match="is empty"):
        directory.open_broker(tmp_path / "broker")


def test_a_store_under_another_root_key_does_not_open(store):
    with pytest.raises(StoreError, match="does not open"):
        Store(store.path, bytes([1]) * 32)


# -- tiles ---------------------------------------------------------------------------------


def test_tile_paths_are_those_of_the_specification():
    assert tiles.tile_path("0", 1234067) == "tile/0/x001/x234/067"
    assert tiles.tile_path("entries", 0, 17) == "tile/entries/000.p/17"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, private):
    folder = tmp_path_factory.mktemp("tiles")
    entries = [json.dumps({"n": number}).encode() for number in range(700)]
    root = merkle.root_of([merkle.leaf_hash(each) for each in entries])
    tiles.write(folder, entries, Checkpoint("keys.example/audit", 700, root).sign(private))
    return folder, entries


@pytest.fixture
def copied(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "copy")
    return tmp_path / "copy", exported[1]


def test_an_exported_log_is_read_back_whole(exported, key):
    folder, entries = exported
    assert list(tiles.read(folder, key).entries) == entries
    assert (folder / "tile/1/000.p/2").stat().st_size == 64


def test_exporting_again_writes_nothing_new(copied, key, private):
    folder, entries = copied
    assert tiles.write(folder, entries, (folder / "checkpoint").read_text()) == 0
    with pytest.raises(AuditError, match="differs"):
        tiles.write(folder, [b"{}", *entries[1:]], "")


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "steps", [[700], [1] * 3 + [697], [255, 1, 1, 443], [256, 256, 188], [700, 0], [300, 300, 100]]
)
def test_a_log_that_is_written_bit_by_bit_is_the_same_log(exported, tmp_path, private, key, steps):
    folder, entries = exported
    writer, at = tiles.Writer(tmp_path / "log"), 0
    for step in steps:
        writer.append(entries[at : at + step])
        at += step
        root = merkle.root_of([merkle.leaf_hash(each) for each in entries[:at]])
        writer.publish(Checkpoint("keys.example/audit", at, root).sign(private))
        assert len(tiles.read(tmp_path / "log", key).entries) == at
    ours, whole = files_below(tmp_path / "log"), files_below(folder)
    assert {name: ours.get(name) for name in whole} == whole
    # Partial tiles of earlier checkpoints stay until their tile is full, as the specification has it.
    assert all(".p/" in name and not name.startswith(("tile/0/000", "tile/0/001")) for name in set(ours) - set(whole))


def test_a_long_log_has_tiles_of_a_third_level(tmp_path, private, key):
    count = 256 * 256 + 5
    entries = [number.to_bytes(3, "big") for number in range(count)]
    root = merkle.root_of([merkle.leaf_hash(each) for each in entries])
    tiles.write(tmp_path, entries, Checkpoint("keys.example/audit", count, root).sign(private))
    assert (tmp_path / "tile/2/000.p/1").is_file() and (tmp_path / "tile/1/000").stat().st_size == 256 * 32
    assert len(tiles.read(tmp_path, key).entries) == count


@pytest.mark.parametrize(("old", "new"), [(1, 2), (255, 256), (100, 699), (256, 512), (700, 700), (5, 700)])
def test_consistency_of_any_two_checkpoints_is_proved_to_somebody_who_has_only_these(exported, private, key, old, new):
    folder, entries = exported

    def checkpoint(size):
        root = merkle.root_of([merkle.leaf_hash(each) for each in entries[:size]])
        return Checkpoint(key.name, size, root).sign(private)

    read = tiles.read(folder, key)
    proof = prove_consistency(read, checkpoint(new), checkpoint(old), key)
    assert "begin" in check_proof(json.dumps(proof), key)
    with pytest.raises(AuditError):
        prove_consistency(read, checkpoint(new), Checkpoint(key.name, old, bytes(32)).sign(private), key)
    with pytest.raises(AuditError):
        prove_consistency(read, Checkpoint(key.name, 701, bytes(32)).sign(private), checkpoint(old), key)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 699, 700])
def test_an_older_checkpoint_is_found_to_be_a_beginning(exported, key, size):
    folder, entries = exported
    root = merkle.root_of([merkle.leaf_hash(each) for each in entries[:size]])
    tiles.extends(tiles.read(folder, key), Checkpoint(key.name, size, root))
    with pytest.raises(AuditError):
        tiles.extends(tiles.read(folder, key), Checkpoint(key.name, size, bytes(32)))


def test_a_log_that_shrank_is_found(exported, key):
    with pytest.raises(AuditError, match="701 entries, the log only 700"):
        tiles.extends(tiles.read(exported[0], key), Checkpoint(key.name, 701, bytes(32)))


def spoiled(folder, name, spoil):
    path = folder / name
    path.write_bytes(spoil(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("tile/entries/000", lambda octets: octets.replace(b'{"n": 5}', b'{"n": 6}')),
        ("tile/entries/001", lambda octets: octets[:-11]),
        ("tile/entries/002.p/188", lambda octets: octets + b"\0\0"),
        ("tile/entries/000", lambda octets: octets[10:20] + octets[:10] + octets[20:]),
        ("tile/0/001", lambda octets: bytes(32) + octets[32:]),
        ("tile/1/000.p/2", lambda octets: octets[::-1]),
        ("checkpoint", lambda octets: octets.replace(b"700", b"699")),
    ],
)
def test_an_altered_dropped_or_reordered_entry_is_found(copied, key, name, spoil):
    folder, _ = copied
    spoiled(folder, name, spoil)
    with pytest.raises(AuditError):
        tiles.read(folder, key)


def test_a_missing_file_is_named(copied, key):
    folder, _ = copied
    (folder / "tile/entries/001").unlink()
    with pytest.raises(AuditError, match="tile/entries/001"):
        tiles.read(folder, key)


def test_the_altered_entry_is_named(copied, key):
    folder, _ = copied
    spoiled(folder, "tile/entries/000", lambda octets: octets.replace(b'{"n": 5}', b'{"n": 6}'))
    with pytest.raises(AuditError, match="entry 5"):
        tiles.read(folder, key)
