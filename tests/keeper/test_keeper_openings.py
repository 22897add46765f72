"""Several models in one keeper: opened side by side, within the threads and the memory that are there."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from datetime import UTC, datetime
from functools import partial

import pytest
from doubles.direct_link import request_keys
from doubles.models import Author, sealed_toy
from strongroom.archive.unseal import SealedArchive
from strongroom.errors import RoomUnavailable
from strongroom.keeper.headroom import headroom
from strongroom.keeper.leases import boottime
from strongroom.keeper.models import HeldModel
from strongroom.keeper.openings import SPARE, Openings
from strongroom.keeper.release import Released

MEBIBYTE = 1 << 20


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"it did not happen in {seconds} s")


class House:
    """Models of one author, in one keeper's openings; `answer` is what the broker does before it releases."""

    def __init__(self, folder, count, *, openings, answer=lambda: None, size=100_000):
        author = Author.make(folder)
        self.models, self.asked = [], 0
        for number in range(count):
            sealed = sealed_toy(folder, author, name=f"model{number}", weights=os.urandom(size))
            find = partial(self.find, author, sealed.path)
            keys, desk = request_keys(("x25519",)), self.desk(sealed, answer)
            self.models.append(HeldModel(f"model{number}", sealed.digest, find, keys, desk, openings=openings))

    @staticmethod
    def find(author, path):
        return SealedArchive.open(path).verified((author.key.public,), now=datetime.now(UTC))

    def desk(self, sealed, answer):
        def release():
            self.asked += 1
            answer()
            return Released(sealed.digest, sealed.key, boottime())

        return release

    def open(self):
        return [model.name for model in self.models if model.status()["state"] == "open"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for model in self.models:
            model.close()


def test_eight_models_ask_and_open_side_by_side(tmp_path):
    everybody = threading.Barrier(8)  # breaks unless all eight ask at the same time
    with House(tmp_path, 8, openings=Openings(), answer=lambda: everybody.wait(10)) as house:
        for model in house.models:
            model.start()
        until(lambda: len(house.open()) == 8)


def test_a_broker_that_answers_for_one_model_too_late_keeps_none_of_the_others(tmp_path):
    first, late = threading.Lock(), threading.Event()

    def answer():
        if first.acquire(blocking=False):
            late.wait(30)

    with House(tmp_path, 8, openings=Openings(), answer=answer) as house:
        for model in house.models:
            model.start()
        until(lambda: len(house.open()) == 7)
        late.set()
        until(lambda: len(house.open()) == 8)


def test_threads_are_one_a_model_and_some_while_models_are_opened(tmp_path):
    cores = len(os.sched_getaffinity(0))
    before, most, done = threading.active_count(), 0, threading.Event()
    with House(tmp_path, 8, openings=Openings(), size=4 * MEBIBYTE) as house:

        def watch():
            nonlocal most
            while not done.wait(0.001):
                most = max(most, threading.active_count())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        for model in house.models:
            model.start()
        until(lambda: len(house.open()) == 8)
        done.set()
        watcher.join()
        # Two a model while the broker is asked; at most cores + cores/2 + … /4 that decrypt; the watcher itself.
        assert most <= before + 1 + 2 * 8 + 3 * cores
        until(lambda: threading.active_count() <= before + 8)


def test_as_many_are_opened_at_once_as_there_are_turns_and_each_gets_its_share_of_the_cores():
    openings, inside, threads = Openings(most=3, left=lambda: float("inf")), threading.Barrier(3), []
    waiting = threading.Event()

    def take():
        with openings.turn(MEBIBYTE) as share:
            threads.append(share)
            inside.wait(10)
            waiting.wait(10)

    crew = [threading.Thread(target=take) for _ in range(5)]
    for each in crew[:3]:
        each.start()
    until(lambda: len(threads) == 3)
    cores = len(os.sched_getaffinity(0))
    assert sorted(threads, reverse=True) == [max(1, cores // each) for each in (1, 2, 3)]
    fourth = threading.Thread(target=lambda: openings.turn(MEBIBYTE).__enter__(), daemon=True)
    fourth.start()
    fourth.join(0.3)
    assert fourth.is_alive()
    waiting.set()
    fourth.join(10)
    assert not fourth.is_alive()


# -- memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_both_figures_before_anybody_is_asked_for_a_key(tmp_path):
    left = SPARE + 100
    with House(tmp_path, 1, openings=Openings(left=lambda: left)) as house:
        house.models[0].start()
        house.models[0].wait(10)
        assert "RoomUnavailable" in house.models[0].status()["reason"]
        assert "MiB" in house.models[0].status()["reason"]
        assert house.asked == 0
        left = 1 << 40
        until(lambda: house.open())


def test_models_that_fit_one_by_one_but_not_together_are_opened_one_after_the_other():
    openings = Openings(left=lambda: SPARE + 100 * MEBIBYTE)
    order = []

    def take(number):
        with openings.turn(60 * MEBIBYTE):
            order.append(("in", number))
            time.sleep(0.1)
            order.append(("out", number))

    crew = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for each in crew:
        each.start()
    for each in crew:
        each.join(10)
    assert [what for what, _ in order] == ["in", "out"] * 3


@pytest.mark.parametrize("error", [MemoryError(), OSError(12, ""), OSError(28, ""), OSError(24, "")])
def test_what_the_kernel_refuses_is_said_as_what_it_is(error):
    openings = Openings()
    with pytest.raises(RoomUnavailable) as refusal, openings.turn(1):
        raise error
    assert "limit" in refusal.value.hint
    with openings.turn(1) as threads:  # and the turn came back
        assert threads == len(os.sched_getaffinity(0))


def test_another_error_stays_what_it_is():
    openings = Openings()
    with pytest.raises(OSError, match="other"), openings.turn(1):
        raise OSError(5, "other")
    with openings.turn(1):
        pass


def test_this_machine_says_how_much_memory_is_left():
    assert 1 << 20 < headroom() < 1 << 50


GROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def kernel(folder, *, version, path, limits, mounted_at=""):
    """A /proc and a /sys/fs/cgroup as kernels write them; `limits` maps a group to (limit, usage, inactive file)."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       24683656 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n")
    line = f"0::{path}\n" if version == 2 else f"9:name=systemd:/\n4:memory:{path}\n"
    (proc / "self" / "cgroup").write_text(line)
    limit, usage, inactive = GROUP_FILES[version]
    for group, (most, used, given_up) in limits.items():
        place = groups / ("" if version == 2 else "memory") / group
        place.mkdir(parents=True, exist_ok=True)
        (place / limit).write_text(f"{most}\n")
        (place / usage).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\n{inactive} {given_up}\n")
    return proc, groups


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("path", "limits", "left"),
    [
        ("/", {"": ("max", 5, 0)}, 20_000_000 * 1024),
        ("/a/b", {"a/b": (1000, 700, 200), "a": ("max", 9000, 0)}, 500),
        ("/a/b", {"a/b": (9000, 700, 0), "a": (1000, 900, 0)}, 100),
        ("/a", {"a": (1000, 1200, 0)}, 0),
        ("/docker/1234", {"": (4096, 96, 0)}, 4000),  # the outer path is not mounted in a container
        ("/../other", {"": (4096, 96, 0)}, 4000),
    ],
)
def test_the_tightest_limit_from_the_own_group_to_the_top_counts(tmp_path, version, path, limits, left):
    assert headroom(*kernel(tmp_path, version=version, path=path, limits=limits)) == left


def test_where_nothing_is_stated_nothing_is_refused(tmp_path):
    assert headroom(tmp_path, tmp_path) == float("inf")
    with contextlib.ExitStack() as stack:
        stack.enter_context(Openings(left=lambda: headroom(tmp_path, tmp_path)).turn(1 << 50))
