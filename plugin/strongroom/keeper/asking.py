"""Ask the broker, and be back in time whatever the broker does.

A broker, or whoever stands in front of it, can answer one byte a minute. What waits for it holds a lease that
goes on counting, so a question is asked in a thread of its own and given up after a while, at the latest when
that lease is over. One that was given up is not asked again before it has ended: threads must not pile up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

from strongroom.archive.errand import Errand
from strongroom.errors import BrokerUnreachable, ReleaseError, StrongroomError

PATIENCE_S = 60.0

Question = ParamSpec("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Answered(Generic[Answer]):
    answer: Answer


class Asking(Generic[Question, Answer]):
    """Calls `ask` with a time limit; what is no `ReleaseError` counts as an unreachable broker.

    For one thread that asks. `left` gives the seconds for which the answer is of use.
    """

    def __init__(
        self,
        ask: Callable[Question, Answer],
        *,
        seconds: float = PATIENCE_S,
        left: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._left = left
        self._asked: Errand | None = None

    def __call__(self, *arguments: Question.args, **named: Question.kwargs) -> Answer:
        """What the broker gives; raises a `ReleaseError`."""
        if self._asked is not None and not self._asked.over:
            raise BrokerUnreachable("the last question to the broker is still unanswered")
        results: list[_Answered[Answer] | BaseException] = []

        def ask() -> None:
            try:
                results.append(_Answered(self._ask(*arguments, **named)))
            except BaseException as error:  # whatever it is, it belongs to the thread that waits
                results.append(error)

        try:
            self._asked = Errand(ask)
        except RuntimeError as error:
            raise BrokerUnreachable("the kernel gives no thread to ask the broker on") from error
        seconds = max(0.0, min(self._seconds, self._left()))
        self._asked.wait(seconds)
        if not results:
            raise BrokerUnreachable(
                f"the broker did not answer within {seconds:.0f} s", hint="is something slow in between?"
            )
        result = results.pop()
        if isinstance(result, _Answered):
            return result.answer
        if isinstance(result, ReleaseError):
            raise result
        told, hint = (f": {result}", result.hint) if isinstance(result, StrongroomError) else ("", "")
        raise BrokerUnreachable(f"the broker could not be asked: {type(result).__name__}{told}", hint=hint) from result
