"""Prometheus text of a broker: counts of decisions and sizes, no label that names a peer, key or archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strongroom.broker import leases

if TYPE_CHECKING:
    from strongroom.broker.release import Broker


def exposition(broker: Broker) -> str:
    """The text of `/metrics`."""
    lines = [
        "# HELP strongroom_broker_decisions_total Decisions by kind and outcome.",
        "# TYPE strongroom_broker_decisions_total counter",
    ]
    for (what, outcome), value in sorted(broker.journal.counts.items()):
        lines.append(f'strongroom_broker_decisions_total{{kind="{what}",outcome="{outcome}"}} {value}')
    unable = bool(broker.journal.trouble())
    gauges = {
        "strongroom_broker_sessions": ("Handshakes remembered.", len(broker.sessions)),
        "strongroom_broker_audit_entries": ("Entries of the audit log.", broker.audit.size),
        "strongroom_broker_resources": (
            "Resources in the store.",
            broker.store.rows("SELECT count(*) FROM resources")[0][0],
        ),
        "strongroom_broker_leases": ("Leases that have not ended.", leases.count(broker.store, int(broker.clock()))),
        "strongroom_broker_unable": ("1 while nothing can be recorded, and so nothing released.", int(unable)),
    }
    for name, (said, value) in gauges.items():
        lines += [f"# HELP {name} {said}", f"# TYPE {name} gauge", f"{name} {value}"]
    return "\n".join(lines) + "\n"
