"""Ask the broker, and be back in time whatever the broker does.

A broker, or whoever stands in front of it, can answer one byte a minute. What waits for it holds a lease that
goes on counting, so a question is asked in a thread of its own and given up after a while. One that was
given up is not asked again before it has ended: threads must not pile up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from strongroom.errors import BrokerUnreachable, ReleaseError, StrongroomError
from strongroom.keeper.release import Released

PATIENCE_S = 60.0


class Asking:
    """Calls `release` with a time limit; what is no `ReleaseError` counts as an unreachable broker."""

    def __init__(self, release: Callable[[], Released], *, seconds: float = PATIENCE_S) -> None:
        self._release = release
        self._seconds = seconds
        self._thread: threading.Thread | None = None

    def __call__(self) -> Released:
        """The key; raises a `ReleaseError`."""
        if self._thread is not None and self._thread.is_alive():
            raise BrokerUnreachable("the last question for the key is still unanswered")
        results: list[Released | BaseException] = []
        self._thread = threading.Thread(target=self._ask, args=(results,), name="asking the broker", daemon=True)
        self._thread.start()
        self._thread.join(self._seconds)
        if not results:
            raise BrokerUnreachable(
                f"no key and no refusal came within {self._seconds:.0f} s", hint="is something slow in between?"
            )
        result = results.pop()
        if isinstance(result, Released):
            return result
        if isinstance(result, ReleaseError):
            raise result
        told = str(result) if isinstance(result, StrongroomError) else ""
        raise BrokerUnreachable(
            f"nobody could be asked for the key: {type(result).__name__} {told}".strip()
        ) from result

    def _ask(self, results: list[Released | BaseException]) -> None:
        try:
            results.append(self._release())
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            results.append(error)
