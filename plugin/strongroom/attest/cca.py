"""Obtain an Arm CCA token: configfs, provider ``arm_cca_guest``.

The body is the key broker protocol's ``{"token": [bytes as numbers]}``. docs/attestation/cca.md is the page
for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strongroom.attest import tsm
from strongroom.attest.binding import fit, insist
from strongroom.errors import AttesterUnavailable, EvidenceMalformed
from strongroom.evidence.cca_token import RealmClaims, Token
from strongroom.evidence.types import Evidence

PROVIDER = "arm_cca_guest"


class CcaAttester:
    """CCA evidence of this realm."""

    tee = "cca"

    def __init__(self, *, reports: tsm.Reports | None = None, sleep: Callable[[float], None] | None = None) -> None:
        self._reports = reports or tsm.Configfs()
        self._options: dict[str, Any] = {} if sleep is None else {"sleep": sleep}

    def evidence(self, report_data: bytes) -> Evidence:
        """A fresh token whose realm challenge is `report_data` (32 to 64 bytes); raises `AttesterUnavailable`."""
        wanted = fit(report_data, 64)
        octets = tsm.report(wanted, provider=PROVIDER, reports=self._reports, **self._options).outblob
        try:
            challenge = RealmClaims.parse(Token.parse(octets).realm.payload).challenge
        except EvidenceMalformed as error:
            raise AttesterUnavailable(f"the monitor's token cannot be read: {error}") from error
        insist(challenge, wanted, what="the realm management monitor")
        return Evidence(self.tee, {"token": list(octets)})


def missing(reports: tsm.Reports | None = None) -> str:
    """What this machine lacks for a CCA token, in one sentence; empty when nothing."""
    return tsm.missing(PROVIDER, reports or tsm.Configfs())
