"""Times on the command line, which every verb reads alike: ISO 8601, and UTC where no zone is said."""

from __future__ import annotations

from datetime import UTC, datetime

from strongroom.errors import WrongUse


def instant(text: str) -> datetime:
    """A date or time, in UTC; raises `WrongUse` for what is none, or none that UTC can say."""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise WrongUse(f"{text!r} is no date, and no time", hint="write 2027-01-31 or 2027-01-31T12:00:00Z") from error
