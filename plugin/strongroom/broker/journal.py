"""What a broker writes down: every decision in the audit log, refusals in full in its own log, and counts.

A peer learns the class of a refusal; everything else is here. Text of peers is cut and cleaned before it is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from strongroom.broker.audit import AuditLog
from strongroom.broker.store import Store
from strongroom.errors import AuditError, ReleaseError, StoreError
from strongroom.evidence.types import Check
from strongroom.plugins import Plugins

log = logging.getLogger("strongroom.broker")

CHECKS_KEPT = 8
TEXT_KEPT = 200
"""Characters of one value; an entry stays small, so that a peer who is refused fills no disk quickly."""

TROUBLE_S = 60.0
"""For how long a log's failure counts, where nothing is recorded meanwhile."""

_CHECK_FIELDS = ("name", "word", "expected", "found")


class Journal:
    """The one place where decisions are recorded. May be used from many threads."""

    def __init__(self, store: Store, audit: AuditLog, plugins: Plugins, clock: Callable[[], float]) -> None:
        self._store = store
        self._audit = audit
        self._plugins = plugins
        self._clock = clock
        self._trouble = ""
        """Why our log or somebody else's did not take the last entry; counts until both do, or for `TROUBLE_S`."""
        self._troubled_at = 0.0
        self.counts: dict[tuple[str, str], int] = {}
        """(kind of decision, outcome) → how often: what `/metrics` shows. Names no peer and no key."""

    def count(self, what: str, outcome: str) -> None:
        """One more decision."""
        self.counts[what, outcome] = self.counts.get((what, outcome), 0) + 1

    def record(self, entry: Mapping[str, Any]) -> None:
        """Write an audit entry, inside the transaction of what it describes; raises `AuditError`, `StoreError`."""
        dated = {"at": int(self._clock())} | {name: value for name, value in entry.items() if value not in ("", None)}
        with self._store.transaction():
            try:
                self._audit.append(dated)
                self._plugins.audit(dated)
            except AuditError as error:
                self._trouble, self._troubled_at = str(error), time.monotonic()
                raise
        self._trouble = ""

    def refuse(self, entry: Mapping[str, Any], reason: str, failed: tuple[Check, ...] = ()) -> None:
        """Record a refusal with its reason and failed checks; a log that cannot be written changes nothing."""
        self.count(str(entry["event"]), "refused")
        log.warning("%s refused: %s", entry["event"], _clean(reason, 2000))
        for check in failed:
            log.warning(
                "  %s: expected %s, found %s", check.name, _clean(check.expected, 400), _clean(check.found, 400)
            )
        kept = [
            {name: _clean(value, TEXT_KEPT) for name, value in check.serialise().items() if name in _CHECK_FIELDS}
            for check in failed[:CHECKS_KEPT]
        ]
        with suppress(ReleaseError):
            self.record(dict(entry) | {"decision": "refused", "reason": _clean(reason, 1000), "checks": kept})

    def trouble(self) -> str:
        """Why nothing can be recorded, and so nothing released, at the moment; empty where it can."""
        if self._store.trouble:
            with suppress(StoreError):
                # Tried again only after a failure: a probe writes to the disk, and as much as a few entries.
                self._store.write("INSERT OR REPLACE INTO about VALUES ('probe', zeroblob(65536))")
                self._store.write("DELETE FROM about WHERE name = 'probe'")
        if self._trouble and time.monotonic() - self._troubled_at >= TROUBLE_S:
            self._trouble = ""  # who sends nobody here because of it would never learn that it has passed
        return self._store.trouble or self._trouble


def _clean(text: object, limit: int) -> str:
    """A peer's text on one line, without control characters and lone surrogates, which no log can hold."""
    shown = str(text)[:limit].encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each.isprintable() else "?" for each in shown)
