"""Key lists to the byte, and the private set: rotation, overlap, epochs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strongroom.channel import ohttp
from strongroom.channel.fleet import model_secret
from strongroom.channel.kem import KEMS, P256, X25519, XWING
from strongroom.channel.keylist import KeyConfig, KeyList
from strongroom.channel.keyset import KeySet
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import ConfigurationInvalid, KeyUnknown, MalformedInput
from strongroom.keys import ArchiveDigest, ModelKey


def opens(keyset, config):
    """Whether a request to `config` opens at `keyset`."""
    message, _ = ohttp.encapsulate(config, config.pairs[0], b"x")
    head, enc, ciphertext = RequestHead.parse(message)
    return ohttp.open_request(keyset.decapsulate(head, enc, Form.SINGLE), ciphertext) == b"x"


def test_a_set_offers_xwing_first_with_the_pairs_of_the_protocol_page():
    xwing, x25519 = KeySet().keys.configs
    assert (xwing.kem_id, xwing.pairs) == (XWING, ((1, 2), (1, 1), (1, 3)))
    assert (x25519.kem_id, x25519.pairs) == (X25519, ((1, 1), (1, 2), (1, 3)))
    assert x25519.key_id == (xwing.key_id + 1) % 256


def test_the_list_has_exactly_the_bytes_of_the_rfc():
    keyset = KeySet((X25519,), first_key_id=7)
    config = keyset.keys.configs[0]
    pairs = bytes.fromhex("000c 00010001 00010002 00010003")
    assert keyset.ohttp_keys == bytes.fromhex("0031 07 0020") + config.public_key + pairs
    assert KeyList.parse(keyset.ohttp_keys) == keyset.keys


@pytest.mark.parametrize("kems", [(), (XWING, XWING), (0x0041,), (0x1234,)])
def test_a_set_without_keys_or_with_odd_ones_is_refused(kems):
    with pytest.raises(ConfigurationInvalid):
        KeySet(kems)


def test_rotation_offers_new_keys_and_opens_with_the_old_until_forgotten():
    keyset = KeySet(first_key_id=254)
    old = keyset.keys.configs
    assert [config.key_id for config in old] == [254, 255]
    keyset.rotate(now=100, overlap=50)
    assert [config.key_id for config in keyset.keys.configs] == [0, 1]
    assert opens(keyset, old[0]) and opens(keyset, keyset.keys.configs[0])
    assert keyset.forget(now=149) == frozenset()
    assert opens(keyset, old[1])
    assert keyset.forget(now=150) == {1}
    with pytest.raises(KeyUnknown):
        opens(keyset, old[0])
    assert opens(keyset, keyset.keys.configs[1])
    assert keyset.generations == {2}


def test_a_key_id_with_another_kem_is_unknown():
    keyset = KeySet()
    with pytest.raises(KeyUnknown):
        keyset.decapsulate(RequestHead(keyset.keys.configs[0].key_id, X25519, 1, 1), bytes(32), Form.SINGLE)


def test_generation_of_names_the_key_that_will_open():
    keyset = KeySet()
    old = keyset.keys.configs[0]
    keyset.rotate(now=0, overlap=10)
    assert keyset.generation_of(RequestHead(old.key_id, XWING, 1, 2)) == 1
    assert keyset.generation_of(RequestHead(keyset.keys.configs[0].key_id, XWING, 1, 2)) == 2


SEEDS = {epoch: bytes([epoch]) * 32 for epoch in (4, 5, 6)}
SECRET = bytes(range(32, 64))


def test_replicas_of_a_fleet_have_the_same_keys_in_an_epoch_and_others_in_the_next():
    kems = (XWING, X25519, P256)
    one, two = (KeySet.of_epochs(SEEDS, 5, SECRET, kems) for _ in range(2))
    assert one.ohttp_keys == two.ohttp_keys
    assert [config.key_id for config in one.keys.configs] == [15, 16, 17]
    assert all(opens(two, config) for config in one.keys.configs)
    assert one.ohttp_keys != KeySet.of_epochs(SEEDS, 6, SECRET, kems).ohttp_keys
    assert one.ohttp_keys != KeySet.of_epochs(SEEDS | {5: bytes(32)}, 5, SECRET, kems).ohttp_keys
    assert one.ohttp_keys != KeySet.of_epochs(SEEDS, 5, bytes(32), kems).ohttp_keys


def test_with_one_kem_a_fleets_key_id_is_the_epoch_modulo_256():
    assert KeySet.of_epochs({300: bytes(32)}, 300, SECRET, (XWING,)).keys.configs[0].key_id == 44


def test_the_fleet_keys_follow_the_derivations_of_the_protocol_page():
    """Computed with the library's own HKDF, so that both cannot be wrong alike."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    model_key, archive = bytes(range(32)), bytes(range(64, 96))
    secret = HKDF(SHA256(), 32, salt=archive, info=b"strongroom fleet v1 model secret").derive(model_key)
    assert model_secret(ModelKey(model_key), ArchiveDigest(archive)) == secret
    info = b"strongroom ohttp" + (5).to_bytes(8, "big") + bytes.fromhex("647a")
    private = HKDF(SHA256(), 32, salt=SEEDS[5], info=info).derive(secret)
    expected = KEMS[XWING].private_key(private).public_octets
    assert KeySet.of_epochs(SEEDS, 5, secret).keys.configs[0].public_key == expected


def test_a_fleets_set_offers_one_epoch_and_opens_with_all_it_holds():
    keyset = KeySet.of_epochs(SEEDS, 5, SECRET)
    assert (keyset.generation, keyset.generations) == (5, {4, 5, 6})
    for epoch in SEEDS:
        other = KeySet.of_epochs({epoch: SEEDS[epoch]}, epoch, SECRET)
        assert all(opens(keyset, config) for config in other.keys.configs)
        head = RequestHead(other.keys.configs[0].key_id, XWING, 1, 2)
        assert keyset.generation_of(head) == epoch
    with pytest.raises(KeyUnknown):
        opens(keyset, KeySet.of_epochs({7: bytes(32)}, 7, SECRET).keys.configs[0])


def test_a_fleets_set_without_the_offered_seed_or_with_odd_sizes_is_refused():
    with pytest.raises(ConfigurationInvalid):
        KeySet.of_epochs(SEEDS, 7, SECRET)
    for seeds, secret in (({5: bytes(31)}, SECRET), ({5: bytes(32)}, bytes(16))):
        with pytest.raises(MalformedInput):
            KeySet.of_epochs(seeds, 5, secret)


def test_a_client_skips_a_kem_it_does_not_know_and_keeps_unknown_pairs():
    keyset = KeySet((XWING,))
    unknown = bytes.fromhex("0007 09 0030 aabbccdd")
    known = KeyConfig(1, X25519, bytes([9]) + bytes(31), ((1, 0xFFFF), (0x11, 1), (1, 3)))
    octets = unknown + KeyList((known,)).serialise() + keyset.ohttp_keys
    keys = KeyList.parse(octets)
    assert [config.kem_id for config in keys.configs] == [X25519, XWING]
    assert keys.choose((X25519,)) == (known, (1, 3))


def test_a_client_that_wants_xwing_gets_xwing_or_nothing():
    assert KeySet().keys.choose()[0].kem_id == XWING
    with pytest.raises(KeyUnknown, match="X25519"):
        KeySet((X25519,)).keys.choose()
    assert KeySet((X25519,)).keys.choose((XWING, X25519))[0].kem_id == X25519


def test_any_wrong_length_discards_the_whole_list():
    octets = KeySet().ohttp_keys
    for cut in (*range(1, 60), *range(len(octets) - 60, len(octets))):
        if cut != 2 + int.from_bytes(octets[:2], "big"):
            with pytest.raises(MalformedInput):
                KeyList.parse(octets[:cut])
    with pytest.raises(MalformedInput):
        KeyList.parse(octets + b"\x00")
    for at, change in ((0, 1), (1, 1), (1221, 1), (1222, 1), (1222, 4)):
        broken = bytearray(octets)
        broken[at] = (broken[at] + change) % 256
        with pytest.raises(MalformedInput):
            KeyList.parse(bytes(broken))


def test_a_private_key_has_no_way_out_of_a_set():
    keyset = KeySet()
    assert not any(hasattr(keyset, name) for name in ("private_key", "reveal", "serialise"))
    assert "PrivateKey(...)" in repr(keyset._held[0].private_key)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_list_or_are_refused(octets):
    try:
        keys = KeyList.parse(octets)
    except MalformedInput:
        return
    assert KeyList.parse(keys.serialise()) == keys
