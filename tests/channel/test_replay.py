"""Each encapsulated request opens once: the replay memory under honest and under hostile hosts."""

from __future__ import annotations

import contextlib
import threading

import pytest
from strongroom.channel.replay import ReplayMemory
from strongroom.errors import DateRefused, ReplayRefused

NOW = 1_800_000_000.0


def opened(memory, enc, *, date=None, now=NOW, generation=1):
    reservation = memory.reserve(enc, generation, now)
    memory.settle(reservation, opened=True, date=date, now=now)


@pytest.mark.parametrize("date", [None, NOW, NOW - 299, NOW + 299])
def test_what_was_opened_is_refused_the_second_time(date):
    memory = ReplayMemory()
    opened(memory, b"one", date=date)
    with pytest.raises(ReplayRefused):
        memory.reserve(b"one", 1, NOW + 1)
    opened(memory, b"two", date=date)


def test_a_copy_is_refused_while_the_first_is_being_opened():
    memory = ReplayMemory()
    memory.reserve(b"one", 1, NOW)
    with pytest.raises(ReplayRefused):
        memory.reserve(b"one", 1, NOW)


def test_what_did_not_open_may_come_again():
    memory = ReplayMemory()
    memory.settle(memory.reserve(b"one", 1, NOW), opened=False, date=None, now=NOW)
    opened(memory, b"one")


def test_what_was_abandoned_counts_as_opened():
    memory = ReplayMemory()
    memory.abandon(memory.reserve(b"one", 1, NOW))
    with pytest.raises(ReplayRefused):
        memory.reserve(b"one", 1, NOW + 10_000)


def test_a_reservation_is_settled_once():
    memory = ReplayMemory()
    reservation = memory.reserve(b"one", 1, NOW)
    memory.settle(reservation, opened=True, date=NOW, now=NOW)
    with pytest.raises(ReplayRefused):
        memory.settle(reservation, opened=False, date=None, now=NOW)


@pytest.mark.parametrize("date", [NOW - 301, NOW + 301, 0.0])
def test_a_date_outside_the_window_is_refused(date):
    memory = ReplayMemory()
    with pytest.raises(DateRefused):
        opened(memory, b"one", date=date)


def test_a_dated_request_is_remembered_until_its_date_is_refused_anyway():
    memory = ReplayMemory()
    opened(memory, b"one", date=NOW + 200)
    for later in (1, 250, 499, 500):
        with pytest.raises(ReplayRefused):
            memory.reserve(b"one", 1, NOW + later)
    for later in (500.5, 600, 10_000):
        # Either memory or window must refuse it, at any time.
        try:
            reservation = memory.reserve(b"one", 1, NOW + later)
        except ReplayRefused:
            continue
        with pytest.raises(DateRefused):
            memory.settle(reservation, opened=True, date=NOW + 200, now=NOW + later)
    assert len(memory) == 0


def test_a_clock_set_back_brings_nothing_back():
    memory = ReplayMemory()
    opened(memory, b"one", date=NOW)
    opened(memory, b"later", date=NOW + 1000, now=NOW + 1000)
    reservation = memory.reserve(b"one", 1, NOW)  # the host sets the clock back to where it was valid
    with pytest.raises(DateRefused):
        memory.settle(reservation, opened=True, date=NOW, now=NOW)


def test_an_undated_request_is_remembered_until_its_key_is_forgotten():
    memory = ReplayMemory()
    opened(memory, b"one", generation=1)
    opened(memory, b"two", generation=2)
    with pytest.raises(ReplayRefused):
        memory.reserve(b"one", 1, NOW + 1_000_000)
    memory.forget(frozenset({1}))
    assert len(memory) == 1
    with pytest.raises(ReplayRefused):
        memory.reserve(b"two", 2, NOW + 1_000_000)


def test_undated_requests_past_the_bound_are_refused_and_dated_ones_still_taken():
    memory = ReplayMemory(undated_limit=2)
    opened(memory, b"one")
    opened(memory, b"two")
    with pytest.raises(DateRefused):
        opened(memory, b"three")
    opened(memory, b"four", date=NOW)


def test_a_full_memory_refuses_until_the_window_moved_on():
    memory = ReplayMemory(dated_limit=2)
    opened(memory, b"one", date=NOW)
    opened(memory, b"two", date=NOW)
    with pytest.raises(ReplayRefused, match="full"):
        memory.reserve(b"three", 1, NOW)
    opened(memory, b"three", date=NOW + 700, now=NOW + 700)


def test_a_fleet_member_requires_a_date_and_refuses_those_before_it_started():
    memory = ReplayMemory(require_date=True, not_before=NOW + 10)
    with pytest.raises(DateRefused):
        opened(memory, b"one")
    with pytest.raises(DateRefused):
        opened(memory, b"two", date=NOW + 9)
    opened(memory, b"three", date=NOW + 11)


def test_a_fleet_member_takes_dates_that_are_a_little_ahead_only():
    memory = ReplayMemory(require_date=True, ahead=5, not_before=float("inf"))
    with pytest.raises(DateRefused):
        opened(memory, b"one", date=NOW)
    memory.begin(NOW - 300)
    opened(memory, b"two", date=NOW + 5)
    opened(memory, b"three", date=NOW - 300)
    for date in (NOW + 6, NOW - 301):
        with pytest.raises(DateRefused) as refusal:
            opened(memory, b"four", date=date)
        assert refusal.value.now == NOW  # what a client corrects itself by


def test_of_many_threads_with_one_request_exactly_one_gets_it():
    memory, won, start = ReplayMemory(), [], threading.Barrier(8)

    def race():
        start.wait()
        with contextlib.suppress(ReplayRefused):
            won.append(memory.reserve(b"one", 1, NOW))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
