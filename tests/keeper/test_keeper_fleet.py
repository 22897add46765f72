"""Mode fleet, on a clock of the test's own: whose keys open what, at every moment around the turn of an epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doubles.direct_link import QuietAttester
from doubles.fleet import ARCHIVE, MIDNIGHT, ByHand, Clock, PaperBroker
from hypothesis import given, settings
from hypothesis import strategies as st
from strongroom.broker.epochs import EPOCH_S, EpochSeed
from strongroom.channel.bundle import KeyBundle, ServedModel
from strongroom.errors import BrokerUnreachable, DateRefused, KeyUnknown, ModelUnavailable, ReleaseError, ReplayRefused
from strongroom.keeper.fleet import AHEAD_S
from strongroom.keeper.keyring import Allowance, RequestKeys, Surroundings
from strongroom.keys import ModelKey

TODAY = MIDNIGHT // EPOCH_S - 1
NOON = MIDNIGHT - EPOCH_S // 2
AROUND = Surroundings((), bytes(32), bytes(32))


@pytest.fixture
def clock():
    return Clock()


def standing(broker, *, overlap=7200, **more) -> ByHand:
    """A keeper that has its seeds and has been up for long enough."""
    keeper = ByHand(broker, overlap=overlap, **more)
    keeper.ask()
    broker.clock.now += AHEAD_S + 3
    keeper.present()
    return keeper


def bundle(keeper) -> KeyBundle:
    keys = RequestKeys(ServedModel("toy", "1.0", ARCHIVE), AROUND, QuietAttester(), keeper, Allowance(1e6, 1e6))
    return KeyBundle.parse(keys.bundle(None))


def unavailable(keeper) -> bool:
    try:
        keeper.present()
    except ModelUnavailable:
        return True
    return False


# -- beginning ------------------------------------------------------------------------


def test_before_the_model_is_open_and_before_a_seed_came_there_are_no_keys(clock):
    keeper = ByHand(PaperBroker(clock, NOON), opened=False)
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            keeper.present()
        with pytest.raises(ModelUnavailable):
            keeper.offer()
        assert keeper.status()[0] is None
        keeper.open()


def test_a_keeper_that_just_started_stays_closed_until_no_earlier_request_could_be_dated_late_enough(clock):
    keeper = ByHand(PaperBroker(clock, NOON))
    started = clock.now
    keeper.ask()
    assert unavailable(keeper)
    assert "from now" in str(keeper.status()[1])
    clock.now = started + AHEAD_S - 1
    assert unavailable(keeper)
    clock.now = started + AHEAD_S + 3
    assert keeper.present().generation == TODAY
    assert keeper.status() == (TODAY, None)


def test_keepers_of_one_archive_open_each_others_requests(clock):
    broker = PaperBroker(clock, NOON)
    one, two = standing(broker), standing(broker)
    assert one.offer().ohttp_keys == two.offer().ohttp_keys
    assert two.holds(one.offer().ohttp_keys)


def test_a_bundle_says_that_it_is_a_fleets(clock):
    keeper = standing(PaperBroker(clock, NOON))
    parts = bundle(keeper).parts
    assert parts.mode == "fleet"
    assert (parts.not_before, parts.not_after) == (int(keeper.now()), int(keeper.now()) + 3600)


def test_a_broker_that_does_not_tell_the_time_is_refused(clock):
    broker = PaperBroker(clock, NOON)
    broker.tells_time = False
    keeper = ByHand(broker, opened=False)
    with pytest.raises(ReleaseError, match="time") as refusal:
        keeper.open()
    assert "host" in refusal.value.hint


# -- the turn of an epoch -----------------------------------------------------------------


def test_the_next_seed_is_asked_for_ahead_of_time_and_opens_before_it_is_offered(clock):
    broker = PaperBroker(clock, NOON)
    keeper = standing(broker)
    clock.now += MIDNIGHT - 7200 * 1.26 - broker.now
    keeper.ask()
    assert keeper.present().generations == {TODAY}
    clock.now += MIDNIGHT - 7200 * 1.1 - broker.now
    keeper.ask()
    assert (keeper.present().generation, keeper.present().generations) == (TODAY, {TODAY, TODAY + 1})


def test_keepers_that_turn_over_seconds_apart_open_each_others_requests_all_the_time(clock):
    broker = PaperBroker(clock, MIDNIGHT - 3000)
    early = standing(broker)
    broker.delay = 8.0  # a slow way: this one's idea of the time is uncertain by as much
    late = standing(broker)
    offers = set()
    clock.now += MIDNIGHT - 20 - broker.now
    while broker.now < MIDNIGHT + 20:
        for one, other in ((early, late), (late, early)):
            offers.add(one.offer().ohttp_keys)
            assert other.holds(one.offer().ohttp_keys)
        clock.now += 0.5
    assert len(offers) == 2
    assert early.status() == late.status() == (TODAY + 1, None)


def test_the_old_keys_open_for_the_overlap_and_no_longer(clock):
    broker = PaperBroker(clock, MIDNIGHT - 3000)
    keeper = standing(broker)
    old = keeper.offer().ohttp_keys
    clock.now += MIDNIGHT + 7190 - broker.now
    assert keeper.offer().ohttp_keys != old
    assert keeper.holds(old)
    clock.now += 20
    with pytest.raises(KeyUnknown):
        keeper.holds(old)
    assert keeper.present().generations == {TODAY + 1}


def test_a_keeper_that_starts_within_the_overlap_opens_for_yesterdays_clients_too(clock):
    broker = PaperBroker(clock, MIDNIGHT - 3000)
    yesterday = standing(broker).offer().ohttp_keys
    clock.now += MIDNIGHT + 1800 - broker.now
    fresh = standing(broker)
    assert fresh.holds(yesterday)
    assert fresh.present().generation == TODAY + 1
    clock.now += 7200
    broker.asked.clear()
    standing(broker)
    assert broker.asked == [TODAY + 1]


@settings(max_examples=40, deadline=None)
@given(moment=st.integers(0, EPOCH_S - 1), overlap=st.sampled_from([60, 3600, 7200, 43200]))
def test_no_bundle_outlives_the_keys_that_it_offers(moment, overlap):
    clock = Clock()
    broker = PaperBroker(clock, MIDNIGHT + moment)
    keeper = standing(broker, overlap=overlap)
    parts = bundle(keeper).parts
    assert parts.not_after - parts.not_before in range(3538, 3601)
    clock.now += parts.not_after - broker.now
    keeper.ask()
    assert keeper.holds(parts.ohttp_keys)


def test_the_cached_bundle_is_another_one_after_the_turn(clock):
    broker = PaperBroker(clock, MIDNIGHT - 60)
    keeper = standing(broker)
    keys = RequestKeys(ServedModel("toy", "1.0", ARCHIVE), AROUND, QuietAttester(), keeper, Allowance(1e6, 1e6))
    before = keys.bundle(None)
    assert keys.bundle(None) == before
    clock.now += 120
    assert KeyBundle.parse(keys.bundle(None)).parts.ohttp_keys == keeper.offer().ohttp_keys
    assert keys.bundle(None) != before


# -- a broker that is away ---------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(begins=st.integers(-30_000, 10_000), lasts=st.integers(60, 7140))
def test_a_broker_that_is_away_for_less_than_the_overlap_changes_nothing(begins, lasts):
    clock = Clock()
    broker = PaperBroker(clock, MIDNIGHT - 40_000)
    keeper = standing(broker)
    broker.delay = 0
    while broker.now < MIDNIGHT + 20_000:
        broker.down = begins <= broker.now - MIDNIGHT < begins + lasts
        keeper.ask()
        if abs(broker.now - MIDNIGHT) > 2:
            right = TODAY if broker.now < MIDNIGHT else TODAY + 1
            assert keeper.offer() and keeper.present().generation == right
        clock.now += 60


def test_without_a_seed_at_the_turn_the_old_keys_serve_until_their_overlap_is_over_and_then_none(clock):
    broker = PaperBroker(clock, MIDNIGHT - 10_000)
    keeper = standing(broker)
    broker.down = True
    old = keeper.offer().ohttp_keys
    clock.now += MIDNIGHT + 5000 - broker.now
    keeper.ask()
    assert keeper.offer().ohttp_keys == old
    assert bundle(keeper).parts.not_after <= MIDNIGHT + 7200 - 60
    clock.now += MIDNIGHT + 7150 - broker.now
    with pytest.raises(ModelUnavailable):
        keeper.offer()
    assert keeper.holds(old)  # whoever has the bundle is served to its end
    clock.now += 100
    keeper.ask()
    assert unavailable(keeper)
    assert isinstance(keeper.status()[1], BrokerUnreachable)
    broker.down = False
    keeper.ask()
    assert keeper.present().generation == TODAY + 1


def test_every_hour_the_present_seed_is_asked_for_again_and_another_one_takes_its_place(clock):
    """A broker that lost its store makes new seeds: keepers have to find together again."""
    broker = PaperBroker(clock, NOON)
    keeper = standing(broker)
    old = keeper.offer().ohttp_keys
    broker.asked.clear()
    clock.now += 3500
    keeper.ask()
    assert not broker.asked
    broker.life = b"second"
    clock.now += 200
    keeper.ask()
    assert broker.asked == [TODAY]
    assert keeper.offer().ohttp_keys != old
    assert standing(broker).holds(keeper.offer().ohttp_keys)


# -- withdrawal -------------------------------------------------------------------------------------


def test_when_the_model_is_withdrawn_the_keys_go_with_it_and_come_back_with_it(clock):
    keeper = standing(PaperBroker(clock, NOON))
    old = keeper.offer().ohttp_keys
    tenure = keeper._tenure
    keeper.closed()
    assert unavailable(keeper)
    assert keeper._tenure is None and keeper._keys is None and tenure.over
    keeper.open()
    keeper.ask()
    assert keeper.offer().ohttp_keys == old


def test_a_seed_that_comes_after_the_withdrawal_is_thrown_away(clock):
    broker = PaperBroker(clock, NOON)
    keeper = ByHand(broker)
    tenure = keeper._tenure

    def too_late(seed):
        keeper.closed()
        return seed

    broker.bend = too_late
    keeper._ask(tenure)
    clock.now += 100
    assert unavailable(keeper) and not tenure.seeds


def test_a_withdrawal_forgets_no_replay(clock):
    """The same keys come back, so the memory must not have gone with them."""
    keeper = standing(PaperBroker(clock, NOON))
    memory, now = keeper.memory, keeper.now()
    memory.settle(memory.reserve(b"enc", TODAY, now), opened=True, date=now, now=now)
    keeper.closed()
    keeper.open()
    keeper.ask()
    with pytest.raises(ReplayRefused):
        keeper.memory.reserve(b"enc", TODAY, keeper.now())


# -- seeds that are not believed ----------------------------------------------------------------------


def resigned(broker, seed, **changes) -> EpochSeed:
    """A seed that the broker itself signed, with something else in it."""
    changed = replace(seed, **changes)
    return replace(changed, signature=broker.identity.sign(changed._signed()))


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": TODAY + 1},
        {"not_before": MIDNIGHT - EPOCH_S + 1},
        {"not_after": MIDNIGHT + 1},
        {"broker_time": NOON - 400},
        {"broker_time": NOON + 700},
        {"broker_time": NOON - 30 * EPOCH_S},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_signed_seed_of_another_time_is_refused(clock, changes):
    broker = PaperBroker(clock, NOON)
    broker.bend = lambda seed: resigned(broker, seed, **changes)
    keeper = ByHand(broker)
    with pytest.raises(ReleaseError) as refusal:
        keeper._ask(keeper._tenure)
    assert refusal.value.hint
    clock.now += 60
    assert unavailable(keeper)


def test_a_guest_that_was_paused_asks_for_the_time_again_before_it_calls_a_seed_stale(clock):
    """The host stopped the machine, and with it CLOCK_BOOTTIME, for a week."""
    broker = PaperBroker(clock, NOON)
    keeper = standing(broker)
    broker.offset += 7 * EPOCH_S
    clock.now += 3700
    for _ in range(2):  # the first question is for an epoch that the broker does not give any more
        keeper.ask()
    assert keeper.present().generations == {TODAY + 7}
    assert abs(keeper.now() - broker.now) < 2


def test_a_broker_with_another_model_key_does_not_tell_the_time(clock):
    broker = PaperBroker(clock, NOON)
    keeper = standing(broker)
    before = keeper.now()
    broker.key, broker.offset = ModelKey(bytes(32)), broker.offset + 7 * EPOCH_S
    clock.now += 3700
    with pytest.raises(ReleaseError, match="another key"):
        keeper._ask(keeper._tenure)
    assert keeper.now() - before < 3800


def test_a_renewed_lease_tells_the_time_too(clock):
    broker = PaperBroker(clock, NOON)
    keeper = standing(broker)
    broker.offset += 100
    keeper.told(int(broker.now), clock.now - 0.1, clock.now)
    assert abs(keeper.now() - broker.now) < 2


# -- replays ---------------------------------------------------------------------------------------------


def dated(keeper, enc, date) -> None:
    """A request of that Date is opened; raises what a worker would hear."""
    reservation = keeper.memory.reserve(enc, keeper.present().generation, keeper.now())
    keeper.memory.settle(reservation, opened=True, date=date, now=keeper.now())


def test_a_request_without_a_date_is_refused(clock):
    with pytest.raises(DateRefused):
        dated(standing(PaperBroker(clock, NOON)), b"one", None)


def test_what_is_dated_before_the_keeper_started_is_refused(clock):
    broker = PaperBroker(clock, NOON)
    started = broker.now
    keeper = standing(broker)
    for date in (started - 200, started, started + AHEAD_S - 1):
        with pytest.raises(DateRefused):
            dated(keeper, b"old", date)
    dated(keeper, b"new", broker.now)


SECONDS = st.floats(0, 3) | st.floats(0, 60)


@settings(max_examples=150, deadline=None)
@given(
    first=SECONDS, second=SECONDS, ahead=st.floats(-10, 70) | st.floats(-400, 400), down=SECONDS,
    wait=st.floats(0, 100) | st.floats(0, 900),
)  # fmt: skip
def test_whatever_one_keeper_opened_before_another_started_is_never_opened_by_the_other(
    first, second, ahead, down, wait
):
    """Whatever the ways' lengths, the client's clock and the pause between: the memory of the first is not needed."""
    clock = Clock()
    broker = PaperBroker(clock, NOON)
    broker.delay = first
    keeper = standing(broker)
    clock.now += 60
    date = float(int(broker.now + ahead))
    try:
        dated(keeper, b"enc", date)
    except DateRefused:
        return
    clock.now += down
    broker.delay = second
    reborn = ByHand(broker)
    reborn.ask()
    clock.now += AHEAD_S + 2 + second + wait
    with pytest.raises(DateRefused):
        dated(reborn, b"enc", date)


def test_between_keepers_that_run_together_a_host_can_replay_once_each(clock):
    """The residue that docs/protocol.md section 7.4 states."""
    broker = PaperBroker(clock, NOON)
    one, two = standing(broker), standing(broker)
    date = broker.now
    for keeper in (one, two):
        dated(keeper, b"enc", date)
        with pytest.raises(ReplayRefused):
            dated(keeper, b"enc", date)
