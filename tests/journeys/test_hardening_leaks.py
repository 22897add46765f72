"""The leak hunt over a real server: while it serves, after each kind of death, and after its end."""

from __future__ import annotations

import os
import signal

import pytest
from doubles.ground import Ground
from leaks.hunt import Hunt, may_watch

pytestmark = [
    pytest.mark.journey,
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: the hunt needs root to look everywhere"),
]


@pytest.fixture(scope="module")
def ground():
    ground = Ground()
    try:
        ground.serve()
        yield ground
    finally:
        ground.close()


@pytest.mark.parametrize("deaths", [(), ("worker", "keeper"), ("java",)], ids=" and ".join)
def test_after_every_death_there_is_no_canary_anywhere(ground, deaths):
    with ground.watched():
        ground.talk()
        for each in deaths:
            ground.kill(each)
            ground.talk()
    assert ground.search() == []
    searched = ground.hunt.searched
    assert ground.unsearched() == set()
    assert searched["bytes of memory"] > 50 << 20
    assert searched["bytes of loopback traffic"] > 10_000
    assert searched["packets that went by unheard"] == 0
    assert not may_watch() or searched["files watched"] > 0
    assert {"the model key", "the author's key", "the key of a request to digits", "piece"} <= set(ground.hunt.canaries)


def test_a_leak_that_is_planted_in_the_same_ground_is_found(ground):
    place = ground.stage.host / "logs" / "planted.log"
    place.write_text(f"a line with {ground.canaries['request']} and {ground.canaries['the model key'].hex()}\n")
    try:
        hunt = Hunt(ground.canaries, spared=(ground.stage.owner,), began=ground.hunt.began)
        hunt.files([ground.stage.host])
        assert {(each.what, each.where) for each in hunt.found} == {
            ("request", str(place)),
            ("the model key", str(place)),
        }
    finally:
        place.unlink()


def test_the_workers_memory_does_hold_the_model_so_the_search_of_memory_is_not_blind(ground):
    hunt = Hunt(ground.canaries)
    hunt.memory([each.pid for each in ground.tree("worker")])
    assert "model" in {each.what for each in hunt.found}


def test_the_memory_files_of_the_keeper_do_hold_the_weights_so_the_search_of_them_is_not_blind(ground):
    hunt = Hunt(ground.canaries)
    hunt.processes([each.pid for each in ground.tree("keeper")], inside=lambda pid: False)
    assert {"model", "weights"} <= {each.what for each in hunt.found}


def test_after_the_end_nothing_is_left_not_even_what_the_handler_wrote(ground):
    ground.talk()
    ground.stage.launcher.send_signal(signal.SIGTERM)
    ground.stage.launcher.wait(40)
    ground.hunt.found.clear()
    ground.hunt.files()
    assert ground.hunt.found == []
