"""Threads that nobody waits for: they run, they end, and one that never ran keeps nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from strongroom.archive.errand import Errand

SHORTAGE = """
import resource, sys, time
from strongroom.archive.errand import Errand
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
ran, refused, waited = [], 0, 0.0
for extra in range(0, 24 << 20, 64 << 10):  # somewhere in between a thread gets its stack and no memory beyond
    resource.setrlimit(resource.RLIMIT_AS, (pages + extra, -1))
    try:
        errand = Errand(lambda: ran.append(1))
    except (RuntimeError, MemoryError):
        refused += 1
        continue
    began = time.monotonic()
    assert errand.wait(10)
    waited = max(waited, time.monotonic() - began)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(len(ran), refused, waited)
"""


def test_it_runs_beside_and_is_over_when_its_function_returned():
    going, done = threading.Event(), threading.Event()
    errand = Errand(lambda: (going.set(), done.wait(10)))
    assert going.wait(10)
    assert not errand.over
    assert not errand.wait(0.05)
    done.set()
    assert errand.wait(10)
    assert errand.over


def test_one_that_breaks_its_promise_and_raises_is_over_too(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: told.append(raised.exc_type))

    def fail():
        raise ZeroDivisionError

    assert Errand(fail).wait(10)
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == [ZeroDivisionError]


def test_waiting_ends_when_the_time_does():
    stop = threading.Event()
    errand = Errand(lambda: stop.wait(10))
    before = time.monotonic()
    assert not errand.wait(0.3)
    assert time.monotonic() - before < 5
    stop.set()


def test_where_memory_runs_out_while_threads_begin_nobody_waits_for_ever():
    done = subprocess.run([sys.executable, "-c", SHORTAGE], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    ran, refused, waited = done.stdout.split()
    assert int(ran) > 0 and int(refused) > 0
    assert float(waited) < 10
