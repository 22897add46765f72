"""Recipients change without touching payload or signature, and a kill at any instant leaves a file that opens."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive.conftest import TINY, contents
from archive.makings import NOW, model_files, write_mar
from strongroom.archive import keyfile
from strongroom.archive.passphrase import Cost, Passphrase
from strongroom.archive.recipients import KeyIdentity, Recipient, RecipientKind, provider_slot, recipient_id
from strongroom.archive.rewrap import rewrap_archive
from strongroom.archive.seal import seal_archive
from strongroom.archive.slots import PASSPHRASE, Generation, SlotArea
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import ArchiveTampered, KeyFileInvalid, NoRecipient, SealRefused, WrongKey
from strongroom.keys import ModelKey

CHEAP = Cost(memory=64, iterations=1, lanes=1)


@pytest.fixture(params=["x25519", "xwing"])
def alice(request) -> KeyIdentity:
    return KeyIdentity.generate(request.param)


@pytest.fixture(params=["file", "directory"])
def archive(request, alice, mar, author, tmp_path) -> Path:
    options = TINY | {"slot_pages": 20}
    seal_archive(mar, tmp_path / "out", author=author, form=request.param, recipients=[alice.recipient], **options)
    return tmp_path / "out"


def opens(path: Path, author, *identities) -> bool:
    with SealedArchive.open(path) as archive:
        verified = archive.verified([author.public], now=NOW)
        try:
            opened = verified.unlock_with(identities)
        except NoRecipient:
            return False
        assert contents(opened) == model_files()
        return True


def test_a_recipient_added_opens_it_and_the_first_one_still_does(archive, alice, author):
    bob = KeyIdentity.generate()
    rewrap_archive(archive, identities=[alice], add=[bob.recipient])

    assert opens(archive, author, bob)
    assert opens(archive, author, alice)


def test_a_recipient_removed_opens_it_no_more(archive, alice, author):
    bob = KeyIdentity.generate("x25519")
    rewrap_archive(archive, identities=[alice], add=[bob.recipient])
    rewrap_archive(
        archive,
        identities=[bob],
        drop=lambda slot, digest: slot.recipient == recipient_id(slot.kind, digest, alice.recipient.public),
    )

    assert not opens(archive, author, alice)
    assert opens(archive, author, bob)


def test_neither_payload_nor_header_is_touched(alice, mar, author, tmp_path):
    path = tmp_path / "out"
    seal_archive(mar, path, author=author, recipients=[alice.recipient], **TINY)
    before = path.read_bytes()
    for _ in range(3):
        rewrap_archive(path, identities=[alice], add=[alice.recipient])
    after = path.read_bytes()
    with SealedArchive.open(path) as archive:
        _, at = archive.slots_place

    assert before[:at] == after[:at]
    assert before[at + 8192 :] == after[at + 8192 :]
    assert before[at : at + 8192] != after[at : at + 8192]


def test_a_passphrase_opens_it_in_either_normal_form(archive, alice, author):
    rewrap_archive(archive, identities=[alice], add=[Passphrase("café", CHEAP)])

    assert opens(archive, author, Passphrase("cafe\u0301"))
    assert not opens(archive, author, Passphrase("cafe"))


def test_the_model_key_itself_may_rewrap(mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author, **TINY)
    bob = KeyIdentity.generate("x25519")
    rewrap_archive(sealed.path, key=sealed.key, add=[bob.recipient])

    assert opens(sealed.path, author, bob)
    with pytest.raises(WrongKey):
        rewrap_archive(sealed.path, key=ModelKey.generate(), add=[bob.recipient])


def test_who_does_not_open_it_cannot_rewrap_it(archive, author):
    with pytest.raises(NoRecipient):
        rewrap_archive(archive, identities=[KeyIdentity.generate()], add=[KeyIdentity.generate().recipient])


def test_changing_nothing_is_an_error(archive, alice):
    with pytest.raises(SealRefused, match="no recipient to add"):
        rewrap_archive(archive, identities=[alice], drop=lambda slot, digest: slot.kind == PASSPHRASE)


def test_sixty_four_recipients_fit_and_sixty_five_do_not(mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author)
    identities = [KeyIdentity.generate("xwing") for _ in range(65)]
    rewrap_archive(sealed.path, key=sealed.key, add=[each.recipient for each in identities[:64]])

    assert opens(sealed.path, author, identities[63])
    with pytest.raises(SealRefused, match="at most 64"):
        rewrap_archive(sealed.path, key=sealed.key, add=[identities[64].recipient])
    assert opens(sealed.path, author, identities[63])


def test_recipients_that_do_not_fit_are_refused_and_the_old_ones_stay(alice, mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author, recipients=[alice.recipient], **TINY)
    crowd = [KeyIdentity.generate("xwing").recipient for _ in range(5)]

    with pytest.raises(SealRefused, match="room for 4096"):
        rewrap_archive(sealed.path, identities=[alice], add=crowd)
    assert opens(sealed.path, author, alice)


def test_a_provider_of_a_plugin_has_its_own_slot(archive, alice, author):
    rewrap_archive(
        archive, identities=[alice], add=[lambda key, digest: provider_slot("kms", bytes(digest), b"opaque")]
    )

    with SealedArchive.open(archive) as found:
        kinds = [slot.kind for slot in found.area.current.slots]
    assert kinds[-1] == 4
    assert opens(archive, author, alice)


def test_a_stranger_cannot_bring_back_an_old_set_of_recipients(mar, author, tmp_path):
    alice, bob = KeyIdentity.generate("x25519"), KeyIdentity.generate("x25519")
    path = tmp_path / "out"
    seal_archive(mar, path, author=author, recipients=[alice.recipient, bob.recipient], **TINY)
    with SealedArchive.open(path) as archive:
        old = archive.area.current
        _, at = archive.slots_place
    rewrap_archive(path, identities=[alice], add=[alice.recipient], drop=lambda slot, digest: True)
    # The stranger writes the old slots as generation 3, with the old MAC: there is no other to be had.
    with path.open("r+b") as file:
        file.seek(at)
        file.write(Generation(3, old.slots, old.mac).serialise(4096))

    with pytest.raises(ArchiveTampered, match="recipients of this archive were changed"):
        opens(path, author, bob)


def test_a_write_torn_at_any_octet_leaves_one_intact_generation(mar, author, tmp_path):
    alice = KeyIdentity.generate("x25519")
    path = tmp_path / "out"
    seal_archive(mar, path, author=author, recipients=[alice.recipient], **TINY)
    rewrap_archive(path, identities=[alice], add=[KeyIdentity.generate("x25519").recipient])
    with SealedArchive.open(path) as archive:
        _, at = archive.slots_place
    before = path.read_bytes()[at : at + 8192]
    rewrap_archive(path, identities=[alice], add=[KeyIdentity.generate("x25519").recipient])
    after = path.read_bytes()[at : at + 8192]
    # The third generation went over the first; cut that write everywhere it wrote something.
    written = 82 + 3 * 116
    for cut in range(written + 1):
        area = SlotArea.parse(after[:cut] + before[cut:])
        assert area.current.sequence in (2, 3)
    assert SlotArea.parse(after).current.sequence == 3


def kill_while_rewrapping(path: Path, identity: Path, author, alice, rounds: int) -> int:
    """Kill -9 at random instants; the number of generations that were written in all."""
    chance = random.Random(7)
    for _ in range(rounds):
        program = Path(__file__).with_name("rewrapper.py")
        with subprocess.Popen(
            [sys.executable, str(program), str(path), str(identity)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.06))
            process.kill()
        assert opens(path, author, alice)
    with SealedArchive.open(path) as archive:
        return archive.area.current.sequence


@pytest.fixture
def kept(mar, author, tmp_path):
    alice = KeyIdentity.generate("x25519")
    alice.save(tmp_path / "alice.identity")
    path = tmp_path / "out"
    seal_archive(mar, path, author=author, recipients=[alice.recipient], **TINY)
    return path, tmp_path / "alice.identity", author, alice


def test_killed_while_it_rewraps_the_archive_still_opens(kept):
    assert kill_while_rewrapping(*kept, rounds=6) > 3


@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_three_hundred_times_while_it_rewraps_the_archive_still_opens(kept):
    assert kill_while_rewrapping(*kept, rounds=300) > 300


def test_two_rewraps_at_once_lose_neither_recipient(mar, author, tmp_path):
    import threading

    sealed = seal_archive(mar, tmp_path / "out", author=author)
    people = [KeyIdentity.generate("x25519") for _ in range(12)]
    threads = [
        threading.Thread(
            target=rewrap_archive, args=(sealed.path,), kwargs={"key": sealed.key, "add": [each.recipient]}
        )
        for each in people
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(opens(sealed.path, author, each) for each in people)


def test_identity_and_recipient_survive_their_files(alice, tmp_path):
    alice.save(tmp_path / "a.identity")
    alice.recipient.save(tmp_path / "a.recipient")

    assert KeyIdentity.load(tmp_path / "a.identity").recipient == Recipient.load(tmp_path / "a.recipient")
    with pytest.raises(KeyFileInvalid):
        Recipient.load(tmp_path / "a.identity")


def test_ids_of_one_recipient_in_two_archives_do_not_match(mar, author, tmp_path):
    alice = KeyIdentity.generate("x25519")
    ids = set()
    for name in ("one", "two"):
        sealed = seal_archive(
            write_mar(tmp_path / f"{name}.mar", model_files()),
            tmp_path / name,
            author=author,
            recipients=[alice.recipient],
            **TINY,
        )
        with SealedArchive.open(sealed.path) as archive:
            ids.add(archive.area.current.slots[0].recipient)

    assert len(ids) == 2


def test_the_last_recipient_goes_only_where_the_key_is_elsewhere(alice, mar, author, tmp_path):
    sealed = seal_archive(mar, tmp_path / "out", author=author, recipients=[alice.recipient])
    everybody = {"drop": lambda slot, digest: True}

    with pytest.raises(SealRefused, match="nobody could ever open it"):
        rewrap_archive(sealed.path, identities=[alice], **everybody)
    assert opens(sealed.path, author, alice)
    assert rewrap_archive(sealed.path, identities=[alice], allow_none=True, **everybody) == ()
    rewrap_archive(sealed.path, key=sealed.key, add=[alice.recipient])
    assert rewrap_archive(sealed.path, key=sealed.key, **everybody) == ()


def test_somebody_who_is_no_recipient_is_not_removed_in_silence(archive, alice, author):
    bob = KeyIdentity.generate("x25519").recipient

    with pytest.raises(SealRefused, match=r"bob\.recipient is no recipient"):
        rewrap_archive(archive, identities=[alice], add=[bob], remove={"bob.recipient": bob})
    assert opens(archive, author, alice)


@pytest.mark.parametrize(("kind", "size"), [("x25519", 32), ("xwing", 1216)])
def test_a_recipient_key_to_which_nothing_can_be_wrapped_is_refused_when_it_is_read(kind, size):
    text = f"strongroom-recipient-1:{kind}:{keyfile.text_of(bytes(size))}"

    with pytest.raises(KeyFileInvalid, match=r"low\.recipient: no valid recipient key") as caught:
        Recipient.parse(text, where="low.recipient")
    assert "keygen identity" in caught.value.hint


def test_rewrapping_to_such_a_key_is_refused_and_the_old_recipients_stay(archive, alice, author):
    with pytest.raises(KeyFileInvalid):
        rewrap_archive(archive, identities=[alice], add=[Recipient(RecipientKind.X25519, bytes(32))])
    assert opens(archive, author, alice)


def test_a_recipient_added_twice_at_once_is_refused(archive, alice):
    bob = KeyIdentity.generate("x25519").recipient

    with pytest.raises(SealRefused, match="stands twice") as caught:
        rewrap_archive(archive, identities=[alice], add=[bob, bob])
    assert caught.value.hint


BOB = KeyIdentity.generate("x25519").recipient
BAD = {
    "a key to which nothing can be wrapped": ([Recipient(RecipientKind.X25519, bytes(32))], "no valid recipient key"),
    "sixty-five": ([KeyIdentity.generate("x25519").recipient for _ in range(65)], "at most 64"),
    "one twice": ([BOB, BOB], "named twice"),
    "five passphrases": ([Passphrase("p", CHEAP) for _ in range(5)], "at most 4"),
    "more than there is room for": ([KeyIdentity.generate("xwing").recipient for _ in range(5)], "room for 4096"),
}


@pytest.mark.parametrize("name", BAD)
def test_recipients_who_could_not_get_a_slot_are_refused_before_the_payload_is_sealed(name, mar, author, tmp_path):
    recipients, said = BAD[name]

    def progress(*_: object) -> None:
        raise AssertionError("it was sealed")

    with pytest.raises((SealRefused, KeyFileInvalid), match=said) as caught:
        seal_archive(mar, tmp_path / "out", author=author, recipients=iter(recipients), progress=progress, **TINY)
    assert caught.value.hint


@pytest.fixture
def written(alice, mar, author, tmp_path):
    """Puts a generation of somebody else's into an archive that has one recipient."""
    sealed = seal_archive(mar, tmp_path / "out", author=author, recipients=[alice.recipient], **TINY)
    with SealedArchive.open(sealed.path) as archive:
        _, at = archive.slots_place
        slots = archive.area.current.slots
        slot_key = archive.verified([author.public], now=NOW).unlock(sealed.key).slot_key

    def write(sequence: int, mac: bytes | None = None):
        made = Generation.make(sequence, slots, slot_key=slot_key, digest=sealed.digest)
        with sealed.path.open("r+b") as file:
            file.seek(at)
            file.write(Generation(sequence, slots, mac or made.mac).serialise(4096))
        return sealed

    return write


def test_recipients_that_a_stranger_changed_are_mended_with_the_model_key(written, alice, author):
    sealed = written(7, mac=bytes(32))
    with pytest.raises(ArchiveTampered, match="recipients of this archive were changed"):
        opens(sealed.path, author, alice)
    rewrap_archive(sealed.path, key=sealed.key, add=[alice.recipient], drop=lambda slot, digest: True)

    assert opens(sealed.path, author, alice)


def test_recipients_that_a_stranger_changed_are_not_kept(written, alice):
    sealed = written(7, mac=bytes(32))
    everybody = {"drop": lambda slot, digest: True}

    with pytest.raises(ArchiveTampered) as caught:
        rewrap_archive(sealed.path, key=sealed.key, add=[KeyIdentity.generate().recipient])
    assert "strongroom rewrap SEALED.mar --key KEY --replace" in caught.value.hint
    with pytest.raises(ArchiveTampered):
        rewrap_archive(sealed.path, identities=[alice], add=[alice.recipient], **everybody)


def test_after_the_last_sequence_there_is_none_and_the_recipients_stay(written, alice, author):
    sealed = written(2**64 - 1)

    with pytest.raises(SealRefused, match="the last one") as caught:
        rewrap_archive(sealed.path, key=sealed.key, add=[KeyIdentity.generate("x25519").recipient])
    assert caught.value.hint
    assert opens(sealed.path, author, alice)
