"""EAR: a verifier's answer as a token, read from others and written for our own broker.

Reading: `EarVerifier` takes an EAR, or another JWT of an attestation service, from a verifier that
the policy pins by its certificates or keys, so that somebody else's judgement can stand in for ours.
Writing: `ear_claims` turns a `Verdict` into the claims that a key broker signs, in the shape that
Trustee gives them, with AR4SI numbers (draft-ietf-rats-ar4si) per submodule.

docs/attestation/ear.md is the page for people. Evidence body (tee ``ear``): ``{"token": "…"}``.
Endorsements: ``crl`` and ``ocsp``, where revocation is to be judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.x509 import Certificate

import strongroom
from strongroom.encoding import Fields, small_number, unb64, unhex
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.certificates import parse_chain, verify_chain
from strongroom.evidence.door import at_the_door
from strongroom.evidence.judge import Verdict, serialise_claims
from strongroom.evidence.jws import ALGORITHMS, LONGEST_TOKEN, CompactJws, PublicKey, parse_jwks
from strongroom.evidence.revocation import Lists, check_status
from strongroom.evidence.trustee_names import merged
from strongroom.evidence.trustworthiness import AFFIRMING, TIERS, status, trust_vector
from strongroom.evidence.types import (
    Checklist,
    Claim,
    Claims,
    Endorsements,
    Evidence,
    Provenance,
    RevocationStatus,
    Word,
)

TEE = "ear"
SOURCE = "draft-ietf-rats-ear section 4"
PROFILE = "tag:github.com,2024:confidential-containers/Trustee"
VERIFIER_ID = {"developer": "strongroom", "build": f"strongroom {strongroom.__version__}"}
REVOCATION = "strongroom.revocation"
"""The member of a submodule that says whether its revocation was judged, one of `RevocationStatus`."""
_ANNOTATED = "ear.veraison.annotated-evidence"


# -- writing -------------------------------------------------------------------


def ear_claims(
    verdict: Verdict,
    *,
    runtime_data_claims: Mapping[str, Any],
    device_runtime_data_claims: Mapping[str, Any] | None = None,
    init_data: str | None = None,
    init_data_claims: Any = None,
) -> dict[str, Any]:
    """A verdict as EAR claims, unsigned: the broker adds ``iat``, ``exp`` and ``iss`` and signs.

    `runtime_data_claims` is the document whose digest the CPU evidence carries (``nonce``,
    ``tee-pubkey``), `device_runtime_data_claims` the devices'. A submodule's claims stand under its TEE's
    name in the annotated evidence, and who says each of them under ``provenance``.
    """
    submodules = {}
    for name, each in verdict.submodules.items():
        vector = trust_vector(each)
        own = name == "cpu0"
        claims = serialise_claims(each.claims)
        submodules[name] = {
            "ear.status": status(vector),
            "ear.trustworthiness-vector": vector,
            "ear.appraisal-policy-id": verdict.policy.name,
            REVOCATION: str(each.revocation),
            _ANNOTATED: {
                "report_data": each.claims.report_data.hex(),
                "runtime_data_claims": dict(runtime_data_claims if own else device_runtime_data_claims or {}),
                "init_data": init_data if own else None,
                "init_data_claims": init_data_claims if own else None,
                each.claims.tee: merged({claim: stated["value"] for claim, stated in claims.items()}, each.claims)
                or {"present": True},
                "provenance": {claim: stated["provenance"] for claim, stated in claims.items()},
            },
        }
    return {
        "eat_profile": PROFILE,
        "ear.verifier-id": VERIFIER_ID,
        "strongroom.policy-digest": verdict.policy.digest.hex(),
        "submods": submodules,
    }


# -- reading -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EarPolicy:
    """The ``[ear]`` table. At least one of `certificates` and `keys` has to be there: whom to believe.

    `statuses` lists what a submodule's ``ear.status`` may be; `required_claims` names AR4SI claims that
    have to be affirming in every CPU submodule; `submodules` have to be there; `match` maps a JSON pointer
    into the claims to its allowed values. `check_vectors` refuses a status that is better than the submodule's own
    trustworthiness vector; without it no vector is read that `required_claims` does not need. With
    ``profile = "jwt"`` a token needs no submodules (MAA and its like) and `match` must say what is believed
    instead. `binding` points at the report data.
    """

    certificates: tuple[Certificate, ...]
    keys: Mapping[str, PublicKey]
    issuers: frozenset[str] | None
    profile: str
    statuses: frozenset[str]
    required_claims: tuple[str, ...]
    submodules: tuple[str, ...]
    match: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    binding: str = f"/submods/cpu0/{_ANNOTATED}/report_data"
    max_age: int | None = None
    check_vectors: bool = True
    require_revocation_status: bool = False

    @classmethod
    def parse(cls, table: Fields) -> EarPolicy:
        """Strictly; raises `MalformedInput`."""
        try:
            pem = table.text("trusted_certificates", limit=1 << 16, default="")
            certificates = parse_chain(pem.encode(), what=f"{table.where}: trusted_certificates") if pem else ()
            jwks = table.text("trusted_keys", limit=1 << 18, default="")
            keys = parse_jwks(jwks) if jwks else {}
        except EvidenceMalformed as error:
            raise MalformedInput(f"{table.where}: {error}") from error
        match = {}
        if table.has("match"):
            inner = table.table("match")
            match = {pointer: inner.texts(pointer) for pointer in inner.left()}
        policy = cls(
            certificates=certificates,
            keys=keys,
            issuers=frozenset(table.texts("issuers")) if table.has("issuers") else None,
            profile=table.text("profile", default="ear"),
            statuses=frozenset(table.texts("statuses", default=("affirming",))),
            required_claims=table.texts("required_claims", default=()),
            submodules=table.texts("submodules", default=()),
            match=match,
            binding=table.text("binding", default=f"/submods/cpu0/{_ANNOTATED}/report_data"),
            max_age=table.number("max_age") if table.has("max_age") else None,
            check_vectors=table.truth("check_vectors", default=True),
            require_revocation_status=table.truth("require_revocation_status", default=False),
        )
        table.done()
        if not policy.certificates and not policy.keys:
            raise MalformedInput(f"{table.where}: trusted_certificates or trusted_keys has to say whom to believe")
        if policy.profile not in ("ear", "jwt") or (policy.profile == "jwt" and not policy.match):
            raise MalformedInput(f'{table.where}: profile is "ear", or "jwt" with values to match')
        if not policy.statuses <= {"affirming", "warning"}:
            raise MalformedInput(f"{table.where}: statuses may only be affirming and warning")
        return policy


class EarVerifier:
    """Believes the attestation results of verifiers that the policy pins."""

    tee = TEE

    def policy(self, table: Fields) -> EarPolicy:
        """Parse the ``[ear]`` table; raises `MalformedInput`."""
        return EarPolicy.parse(table)

    def verify(
        self, evidence: Evidence, endorsements: Endorsements, now: datetime, policy: EarPolicy, checks: Checklist
    ) -> Claims:
        """Whose token it is, its signature and its dates; raises `EvidenceMalformed`."""
        with at_the_door("EAR evidence"):
            body = Fields(evidence.body, where="ear")
            token = CompactJws.parse(body.text("token", limit=LONGEST_TOKEN), what="EAR")
            body.done()
        key = _trusted_key(token, endorsements, now, policy, checks)
        _check_signature(token, key, checks)
        _check_dates(token.payload, now, policy, checks)
        for said in _revocation(token.payload):
            checks.note_revocation(said)
        values = {
            "claims": token.payload,
            "issuer": token.payload.get("iss", ""),
            "submodules": _statuses(token.payload),
        }
        claims = {name: Claim(value, Provenance.ATTESTATION_RESULT) for name, value in values.items()}
        return Claims(TEE, claims, _octets(resolve(token.payload, policy.binding)))

    def appraise(self, claims: Claims, policy: EarPolicy, checks: Checklist) -> None:
        """Statuses, required claims and matched values against `policy`."""
        payload: Mapping[str, Any] = claims["claims"]
        if policy.profile == "ear":
            _appraise_submodules(payload, policy, checks)
        if policy.issuers is not None:
            checks.that(
                claims["issuer"] in policy.issuers, "ear.issuer", Word.IDENTITY,
                expected=" or ".join(sorted(policy.issuers)) or "nothing is allowed: the list is empty",
                found=str(claims["issuer"]) or "none", source="RFC 7519 section 4.1.1",
                hint="another attestation service signed with a pinned key; if you trust it, add it to issuers",
            )  # fmt: skip
        for pointer, allowed in policy.match.items():
            found = resolve(payload, pointer)
            said = found if isinstance(found, str) else "absent" if found is None else str(found).lower()
            checks.that(
                found is not None and said in allowed, f"ear.match {pointer}", Word.MEASUREMENT,
                expected=" or ".join(allowed) or "nothing is allowed: the list is empty", found=said[:200],
                source=SOURCE, hint="if you trust this value, add it to [ear.match] in the policy",
            )  # fmt: skip


def _trusted_key(
    token: CompactJws, endorsements: Endorsements, now: datetime, policy: EarPolicy, checks: Checklist
) -> PublicKey | None:
    """The key of a pinned verifier that this token names; None where the token names another's."""
    chain = token.certificates()
    if chain and policy.certificates:
        leaf = chain[0].public_key()
        path = verify_chain(chain, roots=policy.certificates, now=now, checks=checks, name="ear", source=SOURCE)
        spelled = token.header_key()
        same = spelled is None or spelled == leaf
        checks.that(
            same, "ear.key", Word.BINDING, expected="one key in jwk and x5c",
            found="one key" if same else "two keys", source="RFC 7517 section 4.7",
            hint="this header wants one key to be checked and another to be believed: do not trust its maker",
        )  # fmt: skip
        if path is not None:
            check_status(
                path, Lists.parse(endorsements.items), now=now, checks=checks, name="ear",
                required=policy.require_revocation_status,
            )  # fmt: skip
        return leaf if path is not None and same else None  # type: ignore[return-value]
    name = token.header.get("kid")
    key = policy.keys.get(name) if isinstance(name, str) else None
    checks.note_revocation(RevocationStatus.NO_LIST)  # of the pinned key; its devices have their own
    checks.that(
        key is not None, "ear.chain", Word.CHAIN, expected="a key or certificate that the policy pins",
        found=f"kid {name!r}" if name is not None else "a certificate chain" if chain else "no kid and no x5c",
        source="RFC 7515 section 4.1", hint="pin this verifier in the policy if you trust its judgement",
    )  # fmt: skip
    return key


def _check_signature(token: CompactJws, key: PublicKey | None, checks: Checklist) -> None:
    if key is None:
        known = token.algorithm in ALGORITHMS
        if not known:
            checks.that(
                False, "ear.algorithm", Word.ALGORITHM, expected="an asymmetric signature", found=token.algorithm,
                source="RFC 7518 section 3.1",
                hint="ask the verifier for tokens signed with ES256, ES384, RS256 or PS256",
            )  # fmt: skip
        return
    if checks.that(
        token.suits(key), "ear.algorithm", Word.ALGORITHM, expected="the signature algorithm of the pinned key",
        found=token.algorithm, source="RFC 7518 section 3.1", hint="the key decides the algorithm",
    ):  # fmt: skip
        good = token.verifies(key)
        checks.that(
            good, "ear.signature", Word.SIGNATURE, expected="signed by the pinned verifier",
            found="that signature" if good else "another signature", source="RFC 7515 section 5.2",
            hint="the token was changed after it was signed",
        )  # fmt: skip


def _check_dates(payload: Mapping[str, Any], now: datetime, policy: EarPolicy, checks: Checklist) -> None:
    stamps = {name: payload[name] for name in ("iat", "nbf", "exp") if name in payload}
    if any(
        isinstance(each, bool) or not isinstance(each, int | float) or abs(each) > 2**53 for each in stamps.values()
    ):
        raise EvidenceMalformed("EAR: iat, nbf and exp are numbers of seconds")
    at = now.timestamp()
    begins = [stamps[name] for name in ("iat", "nbf") if name in stamps]
    good = bool(begins) and "exp" in stamps and max(begins) <= at <= stamps["exp"]
    checks.that(
        good, "ear.dates", Word.VALIDITY_PERIOD, expected=f"valid at {now:%Y-%m-%dT%H:%M:%SZ}",
        found=", ".join(f"{name} {_moment(value)}" for name, value in stamps.items()) or "no dates",
        source="RFC 7519 section 4.1", hint="attest again: the verifier's tokens live for minutes",
    )  # fmt: skip
    if policy.max_age is not None:
        age = at - min(begins) if begins else float("inf")
        checks.that(
            0 <= age <= policy.max_age, "ear.age", Word.VALIDITY_PERIOD, expected=f"at most {policy.max_age} s old",
            found=f"{age:.0f} s", source=SOURCE, hint="attest again, or allow a greater max_age in the [ear] table",
        )  # fmt: skip


def _moment(value: float) -> str:
    try:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return str(value)


def _statuses(payload: Mapping[str, Any]) -> dict[str, str]:
    submodules = payload.get("submods")
    if not isinstance(submodules, Mapping):
        return {}
    return {
        name: str(each.get("ear.status", "none")) if isinstance(each, Mapping) else "none"
        for name, each in submodules.items()
    }


def _revocation(payload: Mapping[str, Any]) -> list[RevocationStatus]:
    """What the other verifier said of its devices; one that says nothing, as most do, has not judged it for us."""
    submodules = payload.get("submods")
    found = list(submodules.values()) if isinstance(submodules, Mapping) else []
    said = [each.get(REVOCATION) if isinstance(each, Mapping) else None for each in found or [None]]
    known = {str(each): each for each in RevocationStatus}
    return [known.get(str(each), RevocationStatus.NOT_JUDGED) for each in said]


def _appraise_submodules(payload: Mapping[str, Any], policy: EarPolicy, checks: Checklist) -> None:
    found = _statuses(payload)
    missing = [name for name in policy.submodules if name not in found]
    checks.that(
        bool(found) and not missing, "ear.submodules", Word.ATTESTATION_RESULT,
        expected=", ".join(policy.submodules) or "at least one submodule", found=", ".join(found) or "none",
        source=SOURCE, hint="the verifier judged other devices than the policy wants",
    )  # fmt: skip
    for name, stated in found.items():
        required = policy.required_claims if name.startswith("cpu") else ()
        vector = _vector(payload, name) if policy.check_vectors or required else {}
        worst = status(vector)
        honest = stated in TIERS and (not policy.check_vectors or TIERS.index(worst) <= TIERS.index(stated))
        checks.that(
            stated in policy.statuses and honest, f"ear.{name}", Word.ATTESTATION_RESULT,
            expected=" or ".join(sorted(policy.statuses)),
            found=stated if honest or not policy.check_vectors else f"{stated}, with a vector of {worst}",
            source=SOURCE,
            hint="the verifier's own log says what it did not like",
        )  # fmt: skip
        for claim in required:
            value = vector.get(claim, 0)
            checks.that(
                value in AFFIRMING, f"ear.{name}.{claim}", Word.ATTESTATION_RESULT, expected="2 to 31, affirming",
                found=str(value), source="draft-ietf-rats-ar4si section 2.3",
                hint="the verifier has no reference values for this",
            )  # fmt: skip


def _vector(payload: Mapping[str, Any], name: str) -> dict[str, int]:
    submodule = payload["submods"][name]
    vector = submodule.get("ear.trustworthiness-vector", {}) if isinstance(submodule, Mapping) else {}
    if not isinstance(vector, Mapping) or any(
        isinstance(value, bool) or not isinstance(value, int) or not -128 <= value <= 127 for value in vector.values()
    ):
        raise EvidenceMalformed(f"EAR: the trustworthiness vector of {name} is not of small integers")
    return {str(claim): value for claim, value in vector.items()}


def resolve(value: Any, pointer: str) -> Any:
    """The value that a JSON pointer (RFC 6901) names inside `value`, or None."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list):
            try:
                value = value[small_number(key, most=len(value) - 1, where="pointer")]
            except MalformedInput:
                return None
        else:
            return None
    return value


def _octets(value: Any) -> bytes:
    """Report data as a token spells it: hex, else base64; empty where it is absent or neither."""
    if not isinstance(value, str):
        return b""
    for read in (unhex, unb64):
        try:
            return read(value)
        except MalformedInput:
            continue
    return b""
