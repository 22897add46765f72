"""Leases on a clock of our own: renewal, refusal, outage, grace and coming back."""

from __future__ import annotations

import pytest
from strongroom.errors import BrokerUnreachable, LeaseExpired, ReleaseDenied
from strongroom.keeper.leases import Lease, Tenure
from strongroom.keeper.release import Released
from strongroom.keys import ArchiveDigest, ModelKey


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class BrokerOnPaper:
    """Answers a renewal with whatever the test put up."""

    def __init__(self, clock):
        self.clock, self.answer, self.asked = clock, "grant", 0
        self.dropped, self.restored = [], []

    def released(self):
        return Released(
            ArchiveDigest(bytes(32)), ModelKey(bytes(32)), self.clock(), lease_s=300, broker_time=int(self.clock()) + 7
        )

    def fetch(self):
        self.asked += 1
        if self.answer == "grant":
            return self.released()
        raise {"deny": ReleaseDenied("no"), "down": BrokerUnreachable("gone")}[self.answer]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def paper(clock):
    return BrokerOnPaper(clock)


@pytest.fixture
def tenure(clock, paper):
    return Tenure(
        paper.released(), paper.fetch, drop=paper.dropped.append, restore=paper.restored.append, grace_s=60, clock=clock
    )


def advance(clock, tenure, seconds):
    """Let time pass in steps of a second, as a thread would."""
    for _ in range(int(seconds)):
        clock.now += 1
        tenure.step()


def test_a_lease_counts_from_before_it_was_asked_for(clock):
    clock.now = 1010
    lease = Lease.start(100, 5000, asked_at=1000, grace_s=20, clock=clock)
    clock.now = 1099.9
    assert not lease.ended()
    clock.now = 1100
    assert lease.ended() and not lease.expired()
    clock.now = 1120
    assert lease.expired()
    with pytest.raises(LeaseExpired):
        lease.check()


def test_a_lease_without_end_never_expires(clock):
    lease = Lease.start(None, None, clock=clock)
    clock.now += 10**9
    assert not lease.expired()
    lease.check()


def test_a_granted_renewal_keeps_the_key_for_ever(clock, paper, tenure):
    advance(clock, tenure, 3000)
    assert tenure.held and not paper.dropped
    assert paper.asked == 15  # every 200 s: two thirds of 300


def test_a_refusal_drops_the_key_at_the_next_renewal(clock, paper, tenure):
    paper.answer = "deny"
    advance(clock, tenure, 199)
    assert tenure.held
    advance(clock, tenure, 1)
    assert not tenure.held and isinstance(paper.dropped[0], ReleaseDenied)


def test_an_outage_shorter_than_the_grace_changes_nothing(clock, paper, tenure):
    paper.answer = "down"
    advance(clock, tenure, 358)  # the lease ended at 300, its grace ends at 360
    assert tenure.held
    paper.answer = "grant"
    advance(clock, tenure, 300)
    assert tenure.held and not paper.dropped


def test_an_outage_longer_than_lease_and_grace_drops_the_key_once(clock, paper, tenure):
    paper.answer = "down"
    advance(clock, tenure, 500)
    assert [type(each) for each in paper.dropped] == [LeaseExpired]


def test_the_key_comes_back_by_itself(clock, paper, tenure):
    paper.answer = "deny"
    advance(clock, tenure, 400)
    assert not tenure.held
    paper.answer = "grant"
    advance(clock, tenure, 61)
    assert tenure.held and len(paper.restored) == 1


def test_a_paused_guest_shows_as_drift(clock):
    lease = Lease.start(100, 5000, clock=clock)
    clock.now += 50
    assert lease.renewed(100, 5050).drift == 0
    assert lease.renewed(100, 9050).drift == 4000


def test_the_brokers_time_goes_on_by_our_clock(clock):
    lease = Lease.start(100, 5000, clock=clock)
    clock.now += 42
    assert lease.broker_now() == 5042
