"""Ask the broker, and be back in time whatever the broker does.

A broker, or whoever stands in front of it, can answer one byte a minute. What waits for it holds a lease that
goes on counting, so a question is asked in a thread of its own and given up after a while, at the latest when
that lease is over. One that was given up is not asked again before it has ended: threads must not pile up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from strongroom.archive.errand import Errand
from strongroom.errors import BrokerUnreachable, ReleaseError, StrongroomError
from strongroom.keeper.release import Released

PATIENCE_S = 60.0


class Asking:
    """Calls `release` with a time limit; what is no `ReleaseError` counts as an unreachable broker.

    `left` gives the seconds for which the answer is of use.
    """

    def __init__(
        self,
        release: Callable[[], Released],
        *,
        seconds: float = PATIENCE_S,
        left: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._release = release
        self._seconds = seconds
        self._left = left
        self._asked: Errand | None = None

    def __call__(self) -> Released:
        """The key; raises a `ReleaseError`."""
        if self._asked is not None and not self._asked.over:
            raise BrokerUnreachable("the last question to the broker is still unanswered")
        results: list[Released | BaseException] = []
        try:
            self._asked = Errand(partial(self._ask, results))
        except RuntimeError as error:
            raise BrokerUnreachable("the kernel gives no thread to ask the broker on") from error
        seconds = max(0.0, min(self._seconds, self._left()))
        self._asked.wait(seconds)
        if not results:
            raise BrokerUnreachable(
                f"the broker did not answer within {seconds:.0f} s", hint="is something slow in between?"
            )
        result = results.pop()
        if isinstance(result, Released):
            return result
        if isinstance(result, ReleaseError):
            raise result
        told, hint = (f": {result}", result.hint) if isinstance(result, StrongroomError) else ("", "")
        raise BrokerUnreachable(f"the broker could not be asked: {type(result).__name__}{told}", hint=hint) from result

    def _ask(self, results: list[Released | BaseException]) -> None:
        try:
            results.append(self._release())
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            results.append(error)
