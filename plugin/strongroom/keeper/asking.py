"""Ask the broker, and be back in time whatever the broker does.

A broker, or whoever stands in front of it, can answer one byte a minute. What waits for it holds a lease that
goes on counting, so a question is asked in a thread of its own and given up after a while. One that was
given up is not asked again before it has ended: threads must not pile up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from strongroom.errors import BrokerUnreachable, ReleaseError, StrongroomError

PATIENCE_S = 60.0

Question = ParamSpec("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Answered(Generic[Answer]):
    answer: Answer


class Asking(Generic[Question, Answer]):
    """Calls `ask` with a time limit; what is no `ReleaseError` counts as an unreachable broker.

    For one thread that asks.
    """

    def __init__(self, ask: Callable[Question, Answer], *, seconds: float = PATIENCE_S) -> None:
        self._ask = ask
        self._seconds = seconds
        self._thread: threading.Thread | None = None

    def __call__(self, *arguments: Question.args, **named: Question.kwargs) -> Answer:
        """What the broker gives; raises a `ReleaseError`."""
        if self._thread is not None and self._thread.is_alive():
            raise BrokerUnreachable("the last question to the broker is still unanswered")
        results: list[_Answered[Answer] | BaseException] = []

        def ask() -> None:
            try:
                results.append(_Answered(self._ask(*arguments, **named)))
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                results.append(error)

        self._thread = threading.Thread(target=ask, name="asking the broker", daemon=True)
        self._thread.start()
        self._thread.join(self._seconds)
        if not results:
            raise BrokerUnreachable(
                f"the broker did not answer within {self._seconds:.0f} s", hint="is something slow in between?"
            )
        result = results.pop()
        if isinstance(result, _Answered):
            return result.answer
        if isinstance(result, ReleaseError):
            raise result
        told = str(result) if isinstance(result, StrongroomError) else ""
        raise BrokerUnreachable(f"the broker could not be asked: {type(result).__name__} {told}".strip()) from result
