"""The wall clock is the host's, and it steps: request keys, replay memory and bundles while it does."""

from __future__ import annotations

import time

import pytest
from doubles.direct_link import request_keys
from strongroom.channel import ohttp
from strongroom.channel.bhttp import Request
from strongroom.channel.bundle import KeyBundle
from strongroom.channel.kem import X25519
from strongroom.channel.keylist import KeyList
from strongroom.channel.ohttp import Form, RequestHead
from strongroom.errors import DateRefused, KeyUnknown, ReplayRefused

DAY = 86400


class Host:
    """A key holder, and the hand on its wall clock."""

    def __init__(self) -> None:
        self.now = time.time()
        self.keys = request_keys(("x25519",), clock=lambda: self.now)

    def request(self) -> tuple[bytes, bytes]:
        """Head and enc, sealed to what the host offers now."""
        parts = KeyBundle.parse(self.keys.bundle(None)).parts
        config, pair = KeyList.parse(parts.ohttp_keys).choose((X25519,))
        message, _ = ohttp.encapsulate(config, pair, Request("POST", "https", "h", "/", (), b"").serialise())
        head, enc, _ = RequestHead.parse(bytes(message))
        return head.serialise(), enc

    def open(self, request: tuple[bytes, bytes], date: float | None = None) -> None:
        reservation, _ = self.keys.open(*request, Form.SINGLE)
        self.keys.settle(reservation, opened=True, date=date)


@pytest.fixture
def host():
    return Host()


def test_after_a_step_forwards_requests_with_the_clients_date_are_refused_and_with_the_servers_taken(host):
    host.now += DAY
    with pytest.raises(DateRefused):
        host.open(host.request(), date=host.now - DAY)
    host.open(host.request(), date=host.now)


def test_a_clock_that_went_wrong_and_was_set_right_serves_honest_dates_again(host):
    host.open(host.request(), date=host.now)
    host.now += DAY
    host.open(host.request(), date=host.now)
    host.now -= DAY
    host.open(host.request(), date=host.now)
    assert host.keys.terms().latest == host.now


def test_what_was_sealed_before_the_clock_was_set_back_opens_no_more(host):
    taken, untaken = host.request(), host.request()
    host.open(taken, date=host.now)
    host.now += DAY
    host.open(host.request(), date=host.now)  # the memory of what was taken a day ago is over
    host.now -= DAY
    for each in (taken, untaken):
        with pytest.raises(KeyUnknown):
            host.open(each, date=host.now)


def test_keys_that_were_retiring_are_dropped_with_the_others(host):
    source = host.keys.source
    old, source._rotation = host.request(), 0
    host.keys.bundle(None)  # rotated: the old key is retiring and still opens
    source._rotation = DAY
    host.open(old, date=host.now)
    host.now -= DAY
    host.keys.bundle(None)
    assert len(source.present().generations) == 1


@pytest.mark.parametrize("step", [-299, -30, 0])
def test_a_small_step_back_changes_no_key_and_forgets_no_request(host, step):
    taken = host.request()
    host.open(taken, date=host.now)
    before = host.keys.source.offer().ohttp_keys
    host.now += step
    with pytest.raises(ReplayRefused):
        host.open(taken, date=host.now)
    assert host.keys.source.offer().ohttp_keys == before


def test_a_request_that_was_being_opened_while_the_clock_was_set_back_may_still_be_settled(host):
    reservation, _ = host.keys.open(*host.request(), Form.SINGLE)
    host.now -= DAY
    host.keys.bundle(None)
    host.keys.record(reservation, opened=True, date=int(host.now))


@pytest.mark.parametrize("step", [DAY, 3600, -DAY, -3600, -1])
def test_a_cached_bundle_is_made_anew_when_the_clock_was_set(host, step):
    host.keys.bundle(None)
    host.now += step
    parts = KeyBundle.parse(host.keys.bundle(None)).parts
    assert parts.not_before == int(host.now)


def test_a_bundle_is_cached_while_the_clock_runs_on(host):
    first = host.keys.bundle(None)
    host.now += 60
    assert host.keys.bundle(None) == first
