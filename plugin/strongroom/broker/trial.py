"""Try a release policy on evidence before it is in force: the same steps as a release, and a trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strongroom.broker.protocol import Resource
from strongroom.broker.rego import Decision, ReleasePolicy, request_data
from strongroom.broker.trace import Statement, trace
from strongroom.encoding import Fields, parse_json, unb64url
from strongroom.errors import ConfigurationInvalid, EvidenceRefused
from strongroom.evidence.ear import ear_claims
from strongroom.evidence.judge import Endorse, examine, judge, no_endorsements
from strongroom.evidence.judge import Presented as PresentedEvidence
from strongroom.evidence.policy import Policy
from strongroom.evidence.types import Check, Checklist, Evidence
from strongroom.plugins import Plugins

EVIDENCE_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Trial:
    """A decision; the value of each rule of the policy in the order of its text, None for undefined; and the trace."""

    decision: Decision
    rules: tuple[tuple[str, object], ...]
    statements: tuple[Statement, ...]


def trial(policy: ReleasePolicy, claims: Mapping[str, Any], resource: Resource, *, owner: str | None = None) -> Trial:
    """Decide over `claims`, as a broker would for that resource of that owner, and look into every rule."""
    data = request_data("resource", list(resource), {}, owner)
    rules = tuple((name, policy.value_of(name, claims, data)) for name in policy.rules())
    return Trial(policy.decide(claims, data), rules, trace(policy, claims, data))


def claims_of(
    octets: bytes,
    appraisal: Path | None,
    *,
    plugins: Plugins | None = None,
    endorse: Endorse = no_endorsements,
) -> tuple[tuple[Check, ...], dict[str, Any] | None]:
    """(checks, claims) of a token, of its claims as JSON, or of raw evidence that `appraisal` judges.

    Raw evidence is ``{"tee": …, "evidence": …}``; its own report data stands in for the expected one, since
    nobody asked for it. Claims are None where the appraisal refuses. A token's signature is not looked at.
    Raises `ConfigurationInvalid`, `MalformedInput`.
    """
    text = octets.strip()
    if text.count(b".") == 2 and not text.startswith(b"{"):
        claims = parse_json(
            unb64url(text.decode("ascii", "replace").split(".")[1]), where="token", limit=EVIDENCE_LIMIT
        )
        return (), dict(claims)
    read = parse_json(text, where="evidence", limit=EVIDENCE_LIMIT)
    if isinstance(read, dict) and "submods" in read:
        return (), read
    fields = Fields(read, where="evidence")
    evidence = Evidence(fields.text("tee", limit=64), fields.value("evidence"))
    fields.done()
    if appraisal is None:
        raise ConfigurationInvalid("raw evidence has to be judged first", hint="--appraisal FILE.toml")
    verifiers = (plugins or Plugins.load()).verifiers()
    policy, now = Policy.load(appraisal, verifiers), datetime.now(UTC)
    endorsements = endorse(evidence, policy)
    own = examine(PresentedEvidence(evidence, endorsements), policy, now, verifiers, Checklist())
    try:
        verdict = judge(
            evidence,
            binding=b"" if own is None else own.report_data,
            endorsements=endorsements,
            policy=policy,
            now=now,
            verifiers=verifiers,
        )
    except EvidenceRefused as error:
        return tuple(check for check in error.checks if isinstance(check, Check)), None
    claims = ear_claims(verdict, runtime_data_claims={})
    return verdict.checks, json.loads(json.dumps(claims))
