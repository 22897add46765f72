"""The output guard in processes of its own: what comes out of descriptor 1 and 2, and what does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

CANARY = "canary-59d1"
START = """
import ctypes, faulthandler, logging, os, subprocess, sys, threading, warnings
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
from strongroom.worker.guard import OutputGuard
guard = OutputGuard.install(lambda line: line.startswith("[OK]"), ("framework",))
CANARY = "canary-59d1"
"""
WAYS = {
    "print": "print(CANARY, flush=True)",
    "stderr": "print(CANARY, file=sys.stderr, flush=True)",
    "the first stdout": "sys.__stdout__.write(CANARY); sys.__stdout__.flush()",
    "buffer": "sys.stdout.buffer.write(CANARY.encode()); sys.stdout.flush()",
    "fileno": "os.write(sys.stdout.fileno(), CANARY.encode())",
    "descriptors": "os.write(1, CANARY.encode()); os.write(2, CANARY.encode())",
    "C": "ctypes.CDLL(None).puts(CANARY.encode()); ctypes.CDLL(None).fflush(None)",
    "root logger": "logging.warning(CANARY)",
    "a logger": "logging.getLogger('handler').error('%s', CANARY)",
    "reconfigured logging": "logging.basicConfig(force=True); logging.error(CANARY)",
    "the framework's logger": "logging.getLogger('framework.service').error(CANARY)",
    "a broken format": "logging.error('%d', CANARY)",
    "warnings": "warnings.warn(CANARY)",
    "an exception": "raise ValueError(CANARY)",
    "sys.exit": "sys.exit(CANARY)",
    "a thread": "t = threading.Thread(target=lambda: int(CANARY)); t.start(); t.join()",
    "a finalizer": "class A:\\n    def __del__(self): int(CANARY)\\nA()".replace("\\\\n", "\\n"),
    "a child": "subprocess.run(['/bin/sh', '-c', f'echo {CANARY}; echo {CANARY} >&2'])",
    "faulthandler": "faulthandler.dump_traceback()",
}


def said(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", START + program], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_is_put_out_in_any_way_comes_out(way):
    assert CANARY not in said(WAYS[way].replace("\\n", "\n"))


@pytest.mark.parametrize("way", ["print", "root logger", "a thread", "an exception"])
def test_without_the_guard_it_would(way):
    program = "guard.lift()\n" + WAYS[way].replace("\\n", "\n")
    assert CANARY in said(program)


def test_class_names_and_counts_stand_in_its_place():
    text = said("print('x' * 100, flush=True); logging.error('x'); threading.Thread(target=lambda: int('x')).start()")
    assert "bytes on stdout" in text
    assert "log records (ERROR)" in text
    assert "raised ValueError in a thread" in text


def test_our_own_lines_and_the_frameworks_protocol_pass_even_after_logging_was_reconfigured():
    text = said(
        "logging.basicConfig(force=True)\n"
        "logging.getLogger('strongroom.worker').warning('ours')\n"
        "logging.getLogger('framework.metrics').info('[OK] 1')"
    )
    assert "strongroom: ours" in text
    assert "[OK] 1" in text


def test_one_record_is_one_line():
    text = said("logging.getLogger('strongroom').warning('two\\nlines')")
    assert "two lines" in text


def test_a_flood_is_counted_and_not_told_line_by_line():
    text = said("for _ in range(10000): logging.error('x')")
    assert text.count("dropped what the handler put out") == 1


NOISY = """
from strongroom.worker import guard as module
module.REPORT_EVERY_S = 0.0  # every call formats
os.dup2(os.open(os.devnull, os.O_WRONLY), guard._descriptor)
log = logging.getLogger("user")
class Noisy:
    def __del__(self):
        log.warning("bye"); sys.stderr.write("bye")
def work(turns):
    for _ in range(turns):
        a, b = Noisy(), Noisy()
        a.other, b.other = b, a  # a cycle, which the collector frees whenever it runs
        log.warning("x"); sys.stderr.write("y" * 9000)
"""


def ended_well(program: str) -> bool:
    return subprocess.run([sys.executable, "-c", START + NOISY + program], timeout=40, check=False).returncode == 7


def test_a_finalizer_that_logs_while_the_guard_is_at_work_stops_nobody():
    raised = "raised = []\nsys.unraisablehook = raised.append\n"
    assert ended_well(raised + "import gc; gc.set_threshold(1, 1, 1)\nwork(3000)\nos._exit(1 if raised else 7)")


def test_a_finalizer_that_takes_a_lock_under_which_another_thread_logs_stops_nobody():
    assert ended_well(
        "lock = threading.RLock()\n"
        "class Locking(Noisy):\n"
        "    def __del__(self):\n"
        "        with lock: log.warning('bye')\n"
        "Noisy = Locking\n"
        "def under_the_lock():\n"
        "    while True:\n"
        "        with lock: sys.stderr.write('x')\n"
        "import gc; gc.set_threshold(1, 1, 1); sys.setswitchinterval(1e-5)\n"
        "threading.Thread(target=under_the_lock, daemon=True).start()\n"
        "for _ in range(1500):\n"
        "    a, b = Noisy(), Noisy()\n"
        "    a.other, b.other = b, a\n"
        "    sys.stderr.write('y')\n"
        "os._exit(7)"
    )


def test_what_many_threads_put_out_at_once_is_counted_once():
    text = said(
        "from strongroom.worker import guard as module\n"
        "def work():\n"
        "    for _ in range(500): os.sched_yield(); sys.stdout.write('xx')\n"
        "threads = [threading.Thread(target=work) for _ in range(8)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()\n"
        "module.REPORT_EVERY_S = 0.0\n"
        "sys.stdout.write('x')"
    )
    assert "8001 bytes on stdout" in text


def test_a_child_that_was_forked_while_another_thread_was_in_the_guard_can_speak():
    assert ended_well(
        "guard._telling.acquire()\n"
        "def fork():\n"
        "    child = os.fork()\n"
        "    if not child: work(10); os._exit(7)\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "threading.Thread(target=fork).start()\n"
        "threading.Event().wait(30)"
    )


def test_lifted_it_says_so_loudly():
    assert "OUTPUT IS NOT GUARDED" in said("guard.lift()")
