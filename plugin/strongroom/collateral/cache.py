"""The endorsement cache: what was fetched once is used until its signer says it is old.

An instance is what brokers and clients take as ``endorsements`` (`judge.Endorse`): called with evidence and the policy
that it will be held against, it answers with what the evidence's verifier will ask for. Everything is judged before it
is kept and whenever it is read (`trial`), and nothing is used past its nextUpdate. Something older than `refresh_after`
is asked for anew while a source answers, and used while it is valid when none does. What is older than what is kept
never takes its place, so that nobody who stands between can take a revocation back (docs/adr/0071).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from strongroom.collateral.patience import Patience
from strongroom.collateral.sources import Source
from strongroom.collateral.store import Entry, Store
from strongroom.collateral.trial import Judged, judge_endorsement
from strongroom.collateral.trusted import Trusted
from strongroom.collateral.wanted import Wanted, status_of_rim, wanted_for
from strongroom.errors import CollateralUnavailable, EvidenceMalformed, MalformedInput
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import Endorsements, Evidence

STORE = "store"
OLDER = "older than what is kept"


@dataclass(frozen=True, slots=True)
class Kept:
    """One endorsement that holds now."""

    entry: Entry
    expires: datetime
    source: str
    """Where it came from this time: a source's name, or ``store``."""


class EndorsementCache:
    """A store with sources behind it; may be used from many threads."""

    def __init__(
        self,
        store: Store,
        sources: Iterable[Source],
        *,
        trusted: Trusted | None = None,
        refresh_after: timedelta = timedelta(hours=24),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        patience: Patience | None = None,
    ) -> None:
        self.store = store
        self._sources = tuple(sources)
        self._trusted = trusted or Trusted()
        self._refresh_after = refresh_after
        self._clock = clock
        self._patience = patience or Patience()
        self._writing = threading.Lock()

    def __call__(self, evidence: Evidence, policy: Policy | None = None) -> Endorsements:
        """What this evidence needs under `policy`, as far as it can be had: the verifier names what is missing.

        Evidence that cannot be read needs nothing; its verifier says why it cannot be read.
        """
        try:
            wanted = wanted_for(evidence, self._trusted.under(policy))
        except EvidenceMalformed:
            return Endorsements()
        return Endorsements({each.entry.wanted.role: each.entry.octets for each in self._every(wanted)})

    def fetch_for(self, evidence: Evidence, policy: Policy | None = None) -> tuple[list[Kept], list[str]]:
        """Ask the sources anew for everything that this evidence needs; also says which optional things are not had.

        What can be had is kept first. Then raises `CollateralUnavailable` where something necessary is missing, and
        before that `EvidenceMalformed` for evidence that cannot be read.
        """
        kept: list[Kept] = []
        missing: list[str] = []
        refusals: list[CollateralUnavailable] = []
        queue = list(wanted_for(evidence, self._trusted.under(policy)))
        while queue:
            wanted = queue.pop(0)
            try:
                kept.append(self.obtain(wanted, anew=True))
            except CollateralUnavailable as error:
                (missing.append(str(error)) if wanted.optional else refusals.append(error))
                continue
            if wanted.kind == "rim":
                queue += status_of_rim(kept[-1].entry.octets, self._trusted)
        if refusals:
            raise CollateralUnavailable("; ".join(map(str, refusals)), hint=refusals[0].hint)
        return kept, missing

    def _every(self, wanted: Iterable[Wanted]) -> list[Kept]:
        found: list[Kept] = []
        for each in wanted:
            try:
                kept = self.obtain(each)
                found.append(kept)
                if each.kind == "rim":
                    found += self._every(status_of_rim(kept.entry.octets, self._trusted))
            except CollateralUnavailable:
                continue  # the verifier's refusal is the better message: it says which check wants it
        return found

    def obtain(self, wanted: Wanted, *, anew: bool = False) -> Kept:
        """One endorsement that holds now; raises `CollateralUnavailable` with what every place said.

        With `anew` the store answers only where it has something later than every source has, and earlier refusals are
        forgotten: somebody asked for it by hand.
        """
        now = self._clock()
        stored = None if anew else self._stored(wanted, now)
        if stored is not None and now - stored.entry.fetched <= self._refresh_after:
            return stored
        if anew:
            self._patience.welcome(wanted.name)
        trouble = self._patience.objection(wanted.name, now)
        if not trouble:
            latest, trouble = self._ask(wanted, now, must_keep=anew)
            if latest is not None:
                return latest
        if stored is not None:
            return stored
        raise CollateralUnavailable(
            f"{wanted.name} cannot be had: {trouble}",
            hint="open the network to the vendor's service, or bring a bundle: strongroom collateral bundle",
        )

    def _ask(self, wanted: Wanted, now: datetime, *, must_keep: bool) -> tuple[Kept | None, str]:
        """The first good answer of a source, kept in the store; where all were older than what is stored, that.

        Without a good answer sources are not asked again soon. Also what they said.
        """
        trouble: list[str] = []
        stored: Kept | None = None
        for source in self._sources:
            try:
                octets = source.fetch(wanted)
                if octets is None:
                    continue
                judged = judge_endorsement(wanted, octets, now, self._trusted)
            except (CollateralUnavailable, MalformedInput) as error:
                trouble.append(f"{source.name}: {error}")
                continue
            except Exception as error:  # whatever a source does, the next one is asked, and what is stored is used
                trouble.append(f"{source.name}: {type(error).__name__}")
                continue
            entry = Entry(wanted, now.replace(microsecond=0), octets)
            stored = self._keep(entry, judged, now, must_keep)
            if stored is None:
                return Kept(entry, judged.expires, source.name), ""
            trouble.append(f"{source.name}: {OLDER}")
        said = "; ".join(trouble) or "no source has it"
        self._patience.refuse(wanted.name, said, now)
        return stored, said

    def _keep(self, entry: Entry, judged: Judged, now: datetime, must: bool) -> Kept | None:
        """Store what was judged; or what is stored, where that is later."""
        with self._writing:
            stored = self._judged(entry.wanted, now)
            if stored is not None and judged.older_than(stored[1]):
                return stored[0]
            try:
                self.store.put(entry)
            except CollateralUnavailable:
                if must:
                    raise  # else the answer is good and a full disk is no reason to refuse it
        return None

    def _stored(self, wanted: Wanted, now: datetime) -> Kept | None:
        found = self._judged(wanted, now)
        return None if found is None else found[0]

    def _judged(self, wanted: Wanted, now: datetime) -> tuple[Kept, Judged] | None:
        """What is stored and holds now."""
        entry = self.store.get(wanted.name)
        if entry is None:
            return None
        # Name, role and context are the caller's: of the file only the octets are used.
        entry = Entry(wanted, entry.fetched, entry.octets)
        try:
            judged = judge_endorsement(wanted, entry.octets, now, self._trusted)
        except CollateralUnavailable:
            return None
        kept = Kept(entry, judged.expires, STORE)
        return (kept, judged) if now <= judged.expires and entry.fetched <= now else None

    def take_in(self, entries: Iterable[Entry]) -> tuple[list[Kept], list[str]]:
        """Judge entries of a bundle and keep those that hold; also says what is wrong with the others."""
        now, kept, refused = self._clock(), [], []
        for entry in entries:
            try:
                judged = judge_endorsement(entry.wanted, entry.octets, now, self._trusted)
            except CollateralUnavailable as error:
                refused.append(str(error))
                continue
            if self._keep(entry, judged, now, must=True) is None:
                kept.append(Kept(entry, judged.expires, "bundle"))
            else:
                refused.append(f"{entry.wanted.name}: {OLDER}")
        return kept, refused

    def show(self) -> list[tuple[Entry, datetime | None, str]]:
        """Every entry of the store with its expiry, or with what is wrong with it."""
        now, found = self._clock(), []
        for entry in self.store:
            expires: datetime | None = None
            trouble = ""
            try:
                expires = judge_endorsement(entry.wanted, entry.octets, now, self._trusted).expires
            except CollateralUnavailable as error:
                trouble = str(error)
            found.append((entry, expires, trouble))
        return found
