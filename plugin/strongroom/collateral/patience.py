"""How often the world may be asked: not again soon for what was refused, and never more than a few times a minute.

Evidence arrives from strangers, and each piece names what it needs. Without a limit, made-up chips would turn a
broker into a hammer on vendors' services, and a service that is down would hold up every verdict.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from datetime import datetime, timedelta

REMEMBERED = 1024


class Patience:
    """Two memories: names that could not be had lately, and when sources were asked. May be used from many threads."""

    def __init__(self, *, retry_after: timedelta = timedelta(minutes=5), most_a_minute: int = 60) -> None:
        self._retry_after = retry_after
        self._most = most_a_minute
        self._refused: OrderedDict[str, tuple[datetime, str]] = OrderedDict()
        self._asked: deque[datetime] = deque()
        self._lock = threading.Lock()

    def objection(self, name: str, now: datetime) -> str:
        """Why sources are not asked for `name` now; empty where they may be, which then counts as asking."""
        with self._lock:
            until, said = self._refused.get(name, (now, ""))
            if now < until:
                return f"{said} (not asked again before {until:%H:%M:%SZ})"
            while self._asked and now - self._asked[0] >= timedelta(minutes=1):
                self._asked.popleft()
            if len(self._asked) >= self._most:
                return f"sources were asked {self._most} times within a minute"
            self._asked.append(now)
            return ""

    def refuse(self, name: str, said: str, now: datetime) -> None:
        """Remember that `name` cannot be had for now."""
        with self._lock:
            self._refused[name] = (now + self._retry_after, said)
            self._refused.move_to_end(name)
            while len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)

    def welcome(self, name: str) -> None:
        """Forget an earlier refusal."""
        with self._lock:
            self._refused.pop(name, None)
