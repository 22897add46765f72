"""A host's own request keys over time: rotation, overlap, and the bundle that goes with them."""

from __future__ import annotations

import pytest
from doubles.direct_link import ARCHIVE, QuietAttester
from strongroom.channel import ohttp
from strongroom.channel.bundle import KeyBundle, ServedModel
from strongroom.channel.hpke import RecipientContext
from strongroom.channel.kem import P256, X25519
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import KeyUnknown, ReplayRefused
from strongroom.keeper import keyring
from strongroom.keeper.keyring import BUNDLE_LIFETIME, Allowance, HostKeys, RequestKeys, Surroundings
from strongroom.launch.config import Channel

DAY, OVERLAP = 86400, 7200


class Clock:
    """Both clocks of a keeper, in place of the module's `time`; `set_by` is how far the wall clock was set."""

    def __init__(self) -> None:
        self.now, self.set_by = 1_800_000_000.0, 0.0

    def time(self) -> float:
        return self.now + self.set_by

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keyring, "time", clock)
    return clock


def keys_of(*kems: str, overlap: int = OVERLAP) -> RequestKeys:
    channel = Channel(kems or ("x25519",), "host", DAY, overlap, 300)
    source = HostKeys(channel, clock=lambda: keyring.time.time())  # the module's own, which a test may have replaced
    around = Surroundings((), bytes(32), bytes(32))
    return RequestKeys(ServedModel("m", "1.0", ARCHIVE), around, QuietAttester(), source, Allowance(1e6, 1e6))


def bundle(keys: RequestKeys) -> KeyBundle:
    return KeyBundle.parse(keys.bundle(None))


def sealed_to(parts, kem: int = X25519):
    config, pair = KeyList.parse(parts.ohttp_keys).choose((kem,))
    return RequestHead.parse(ohttp.encapsulate(config, pair, b"secret")[0])


def opens(keys: RequestKeys, request) -> bytes:
    head, enc, rest = request
    _, context = keys.open(head.serialise(), enc, Form.SINGLE)
    return bytes(ohttp.open_request(RecipientContext.parse(context), rest))


def test_a_bundle_is_good_to_its_last_second_across_a_rotation(clock):
    keys = keys_of()
    clock.now += DAY - 1
    old = bundle(keys).parts
    clock.now += 2
    new = bundle(keys).parts
    assert new.ohttp_keys != old.ohttp_keys
    clock.now = old.not_after
    assert opens(keys, sealed_to(old)) == opens(keys, sealed_to(bundle(keys).parts)) == b"secret"


@pytest.mark.parametrize("overlap", [OVERLAP, 60])
def test_after_the_overlap_the_old_key_is_gone_and_an_overlap_is_never_shorter_than_a_bundle(clock, overlap):
    keys = keys_of(overlap=overlap)
    old = bundle(keys).parts
    clock.now += DAY
    bundle(keys)
    clock.now += max(overlap, BUNDLE_LIFETIME) - 1
    assert opens(keys, sealed_to(old)) == b"secret"
    clock.now += 2
    with pytest.raises(KeyUnknown):
        opens(keys, sealed_to(old))


def test_evidence_is_made_anew_at_half_of_a_bundles_lifetime(clock):
    keys = keys_of()
    first = keys.bundle(None)
    clock.now += BUNDLE_LIFETIME / 2 - 1
    assert keys.bundle(None) == first
    clock.now += 2
    assert bundle(keys).parts.not_before == int(clock.now)


@pytest.mark.parametrize("set_by", [-3600.0, 7200.0])
def test_a_clock_that_was_set_makes_the_cached_bundle_anew(clock, set_by):
    keys = keys_of()
    keys.bundle(None)
    clock.set_by = set_by
    assert bundle(keys).parts.not_before == int(clock.time())


def test_a_replay_across_a_rotation_is_refused(clock):
    keys = keys_of()
    request = sealed_to(bundle(keys).parts)
    assert opens(keys, request) == b"secret"
    clock.now += DAY
    bundle(keys)
    with pytest.raises(ReplayRefused):
        opens(keys, request)


def test_p256_is_offered_where_the_configuration_says_so(clock):
    keys = keys_of("p-256", "x-wing")
    parts = bundle(keys).parts
    assert KeyList.parse(parts.ohttp_keys).configs[0].kem_id == P256
    assert opens(keys, sealed_to(parts, P256)) == b"secret"
