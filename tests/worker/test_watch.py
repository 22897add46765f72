"""A worker ends when nobody is left who could end its right to the model."""

from __future__ import annotations

import threading
import time

import pytest
from strongroom.errors import KeeperUnavailable, ModelUnavailable
from strongroom.worker import watch


class Line:
    """A line to a keeper that answers as told."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def another(self):
        return self

    def flush(self) -> None:
        pass

    def held(self) -> None:
        self.answer()


@pytest.fixture
def ended(monkeypatch):
    """Set when the worker would have ended."""
    event = threading.Event()
    for name, seconds in (("ASK_EVERY_S", 0.01), ("SILENCE_S", 0.2), ("LAST_WORDS_S", 0.0), ("PATIENCE_S", 0.1)):
        monkeypatch.setattr(watch, name, seconds)
    monkeypatch.setattr(watch.os, "_exit", lambda status: event.set())
    return event


def no_keeper() -> None:
    raise KeeperUnavailable("nobody answers")


def withdrawn() -> None:
    raise ModelUnavailable("its lease is over")


def test_a_worker_that_hears_of_no_keeper_for_long_ends(ended):
    watch.Watch(Line(no_keeper)).start()
    assert ended.wait(20)


def test_a_keeper_that_comes_back_in_time_finds_its_worker(ended):
    answers = iter([no_keeper] * 3)
    line = Line(lambda: next(answers, lambda: None)())
    watched = watch.Watch(line)
    watched.start()
    time.sleep(0.5)
    assert not ended.is_set() and not watched.over
    line.answer = withdrawn
    assert ended.wait(20)


def test_a_model_that_is_withdrawn_ends_its_worker_at_once(ended):
    watched = watch.Watch(Line(withdrawn))
    watched.start()
    assert ended.wait(20) and watched.over
