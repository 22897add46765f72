"""Run every verdict of an evidence manifest against the verifiers, offline.

    python tests/evidence/run_manifest.py MANIFEST.json [--root DIR]

A manifest of format 2 lists cases: files in roles, what the relying party expects, and verdicts under
typed policy parameters. A verdict passes when accept or reject is right and, on reject, when every word
that failed is among its `failed_check` and `also_fails`, and `failed_check` is among those that failed.
Files that cannot be parsed stop a verifier, which then reports what it has. One line a case, then
"N passed, N failed"; exit status 1 when one failed, 2 when the manifest itself is not understood.

The mapping from the manifest's roles and parameters to evidence bodies, endorsements and policy tables is
below, a table per kind of TEE. No case is known by name, and an unknown word is an error.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from strongroom.encoding import Fields, b64, parse_json
from strongroom.errors import EvidenceMalformed, MalformedInput
from strongroom.evidence.judge import Presented, count_devices, examine
from strongroom.evidence.policy import Policy
from strongroom.evidence.tpm_structures import TpmPublic
from strongroom.evidence.types import Checklist, Claims, Endorsements, Evidence, Word
from strongroom.plugins import Plugins

Files = Mapping[str, bytes]


class ManifestInvalid(Exception):
    """The manifest uses a word that this runner does not know, or a file is not the recorded one."""


class VerifierBroke(Exception):
    """A verifier raised something else than a refusal. The judge counts that as no; here it is a failure of ours."""


# -- what each kind of TEE makes of roles ---------------------------------------


@dataclass(frozen=True)
class Kind:
    """How files in roles become an evidence body; roles in `endorsing` are handed in beside it."""

    tee: str
    roles: frozenset[str]
    body: Callable[[Files], dict[str, Any]]
    endorsing: frozenset[str] = frozenset()
    table: Callable[[Files, Mapping[str, Any]], dict[str, Any]] = lambda files, parameters: {}
    """What files and parameters together say in the policy table: trust anchors."""
    needs: str = ""
    """The role without which there is nothing to judge."""
    needs_too: str = ""
    """The role of collateral without which evidence of this kind cannot be looked at."""
    sizes: tuple[int, ...] = (48,)
    """Bytes of a measurement; a value of another size is allowed in a manifest and equals nothing."""
    register_sizes: tuple[int, ...] = (20, 32, 48)


def _members(files: Files, **names: str) -> dict[str, Any]:
    """Body member → file in that role, in base64, left out where there is no such file."""
    return {member: b64(files[role]) for member, role in names.items() if role in files}


def _tdx(files: Files) -> dict[str, Any]:
    return {"cc_eventlog": None} | _members(files, quote="quote", cc_eventlog="event_log")


def _text(octets: bytes) -> str:
    try:
        return octets.decode().strip()
    except UnicodeDecodeError as error:
        raise EvidenceMalformed("not text") from error


def _json(octets: bytes) -> Any:
    return parse_json(octets, where="PCR values")


def _nvidia(files: Files) -> dict[str, Any]:
    device = {"arch": "", "uuid": ""} | _members(files, evidence="evidence", certificate="cert_chain")
    return {"device_evidence_list": [device]}


def _tpm(files: Files) -> dict[str, Any]:
    body: dict[str, Any] = _members(files, ak_pub="ak_pub", ak_spki="ak_spki", ek_cert="ek_cert", event_log="event_log")
    if "ak_name" in files:
        body["ak_name"] = files["ak_name"].hex()
    quotes = {}
    for bank in ("sha1", "sha256", "sha384"):
        quote = _members(files, message=f"quote_{bank}", signature=f"signature_{bank}")
        if f"pcrs_{bank}" in files:
            quote["pcrs"] = _json(files[f"pcrs_{bank}"])
        if quote:
            quotes[bank] = quote
    return body | {"quotes": quotes}


def _tpm_table(files: Files, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The trust anchors: a pinned AK is the one that is given, an EK chains to the given authorities."""
    table: dict[str, Any] = {}
    if parameters.get("ak_trust") == "pinned":
        pin = TpmPublic.parse(files["ak_pub"]).name if "ak_pub" in files else b""
        table["pinned_aks"] = [(pin or hashlib.sha256(files.get("ak_spki", b"")).digest()).hex()]
    if "ek_ca_chain" in files:
        table["ek_roots"] = _text(files["ek_ca_chain"])
    return table


_AZURE_BODY = ("hcl_report", "report", "tdreport", "runtime_data", "tpm_quote", "tpm_signature", "quote")


def _azure(files: Files) -> dict[str, Any]:
    body: dict[str, Any] = _members(files, **{role: role for role in _AZURE_BODY})
    return body | ({"pcrs": _json(files["pcrs"])} if "pcrs" in files else {})


_AZURE_ROLES = {"hcl_report", "runtime_data", "tpm_quote", "tpm_signature", "pcrs"}
_BANKED = {f"{kind}_{bank}" for kind in ("quote", "signature", "pcrs") for bank in ("sha1", "sha256", "sha384")}

KINDS = {
    "sev-snp": Kind(
        "snp",
        frozenset({"report", "vcek", "vlek", "security_policy", "uvm_endorsement"}),
        lambda files: _members(files, report="report"),
        frozenset({"vcek", "vlek", "security_policy"}),
        needs="report",
    ),
    "tdx": Kind("tdx", frozenset({"quote", "collateral", "event_log"}), _tdx, frozenset({"collateral"}), needs="quote"),
    "sgx": Kind(
        "sgx",
        frozenset({"quote", "collateral"}),
        lambda files: _members(files, quote="quote"),
        frozenset({"collateral"}),
        needs="quote",
        sizes=(32,),
    ),
    "cca": Kind(
        "cca",
        frozenset({"token", "cpak"}),
        lambda files: {"token": list(files["token"])} if "token" in files else {},
        frozenset({"cpak"}),
        needs="token",
        sizes=(32, 48, 64),
    ),
    "az-snp-vtpm": Kind("az-snp-vtpm", frozenset(_AZURE_ROLES | {"report", "vcek"}), _azure, frozenset({"vcek"})),
    "az-tdx-vtpm": Kind(
        "az-tdx-vtpm",
        frozenset(_AZURE_ROLES | {"quote", "tdreport", "collateral"}),
        _azure,
        frozenset({"collateral"}),
    ),
    "nvidia": Kind(
        "nvidia",
        frozenset({"evidence", "cert_chain", "vbios_rim", "driver_rim"}),
        _nvidia,
        frozenset({"vbios_rim", "driver_rim"}),
        needs="evidence",
        needs_too="cert_chain",
    ),
    "tpm": Kind(
        "tpm",
        frozenset({"ak_pub", "ak_spki", "ak_cert", "ak_name", "ek_cert", "ek_ca_chain", "event_log"} | _BANKED),
        _tpm,
        frozenset({"ak_cert"}),
        table=_tpm_table,
    ),
    "aws-nitro": Kind(
        "aws-nitro",
        frozenset({"attestation_doc"}),
        lambda files: _members(files, document="attestation_doc"),
        needs="attestation_doc",
        register_sizes=(48,),
    ),
    "ear": Kind(
        "ear",
        frozenset({"ear", "ca"}),
        lambda files: {"token": _text(files["ear"])} if "ear" in files else {},
        table=lambda files, parameters: (
            {"trusted_certificates": _text(files["ca"]), "check_vectors": False} if "ca" in files else {}
        ),
        needs="ear",
        needs_too="ca",
    ),
}

# -- what each parameter means --------------------------------------------------

_SNP, _AZURE = {"sev-snp", "az-snp-vtpm"}, {"az-snp-vtpm", "az-tdx-vtpm"}
_DCAP = {"tdx", "sgx", "az-tdx-vtpm"}
_QUOTED = _AZURE | {"tpm"}
"""Where a TPM quote carries the nonce."""
_ALL = {"sev-snp", "tdx", "sgx", "az-snp-vtpm", "az-tdx-vtpm", "nvidia", "cca", "aws-nitro", "tpm", "ear"}
_STATUSES = {
    "UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
    "OutOfDateConfigurationNeeded",
}  # fmt: skip

Test = Callable[[Any], bool]


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _number(low: int, high: int) -> Test:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _one_of(*words: str) -> Test:
    return lambda value: value in words


def _octets(*sizes: int) -> Test:
    return lambda value: (
        isinstance(value, str)
        and re.fullmatch("([0-9a-f]{2})*", value) is not None
        and (not sizes or len(value) // 2 in sizes)
    )


def _list_of(test: Test, *, empty: bool = True) -> Test:
    return lambda value: isinstance(value, list) and (empty or bool(value)) and all(map(test, value))


def _table_of(keys: str, test: Test) -> Test:
    return lambda value: (
        isinstance(value, dict) and bool(value) and all(re.fullmatch(keys, key) and test(value[key]) for key in value)
    )


@dataclass(frozen=True)
class Parameter:
    """One policy parameter: which values it may have, for which TEEs, and what it becomes.

    `key` is the policy table's; `wrap` puts a single value into the list that the table wants.
    Parameters without a key are read by the runner itself.
    """

    test: Test
    tees: set[str]
    key: str = ""
    wrap: bool = False


PARAMETERS = {
    "endorsements_only": Parameter(_truth, {"sev-snp", "nvidia"}),
    "profile": Parameter(_one_of("generic", "azure"), {"tdx", "az-tdx-vtpm"}, "profile"),
    "allow_debug": Parameter(_truth, _SNP | _DCAP | {"aws-nitro"}, "allow_debug"),
    "allow_migration": Parameter(_truth, _SNP | {"tdx", "az-tdx-vtpm"}, "allow_migration"),
    "max_vmpl": Parameter(_number(0, 3), _SNP, "max_vmpl"),
    "allow_vlek": Parameter(_truth, {"sev-snp"}, "allow_vlek"),
    "expected_csp_id": Parameter(lambda value: isinstance(value, str) and value != "", {"sev-snp"}, "csp_ids", True),
    "min_tcb": Parameter(_table_of("fmc|bootloader|tee|snp|microcode", _number(0, 255)), _SNP, "min_tcb"),
    "allowed_tcb_statuses": Parameter(_list_of(_one_of(*_STATUSES), empty=False), _DCAP, "allowed_tcb_statuses"),
    "allowed_mr_servicetd": Parameter(_list_of(_octets(48)), {"tdx", "az-tdx-vtpm"}, "allowed_mr_servicetd"),
    "required_rims": Parameter(_list_of(_one_of("driver", "vbios")), {"nvidia"}, "required_rims"),
    "require_revocation_status": Parameter(_truth, _ALL - _DCAP - {"cca"}, "require_revocation_status"),
    "require_gpu_count": Parameter(_number(1, 64), {"nvidia"}),
    "allow_trailing_bytes": Parameter(_truth, {"nvidia"}, "allow_trailing_bytes"),
    "ak_trust": Parameter(_one_of("certificate", "pinned"), {"tpm"}, "ak_trust"),
    "pcr_bank": Parameter(_one_of("sha1", "sha256", "sha384"), {"tpm"}, "pcr_bank"),
    "allow_empty_nonce": Parameter(_truth, {"tpm"}, "allow_empty_nonce"),
    "expected_report_data": Parameter(_octets(64), {"sev-snp", "tdx", "sgx"}),
    "expected_nonce": Parameter(_octets(), _AZURE | {"nvidia", "cca", "aws-nitro", "tpm"}),
    "expected_user_data": Parameter(_octets(), _AZURE | {"aws-nitro"}),
    "expected_host_data": Parameter(_octets(32), _SNP, "host_data", True),
    "expected_measurement": Parameter(_octets(32, 48, 64), _SNP | _DCAP | {"cca"}, "measurements", True),
    "expected_pcrs": Parameter(
        _table_of("[0-9]|1[0-9]|2[0-3]", _octets(20, 32, 48)), _AZURE | {"aws-nitro", "tpm"}, "pcrs", True
    ),
}
INPUTS = ("report_data", "nonce", "user_data", "host_data")

WORDS = frozenset(map(str, Word)) - {str(Word.TEE), str(Word.ADMITTED)}
"""What `failed_check` and `also_fails` may say; the two others are about policies, which a manifest does not have."""
CASE_FIELDS = {"path", "what", "tee", "files", "roles", "inputs", "verification_time", "expected", "captured_on"}
CASE_OPTIONAL = {"product", "nonce", "claims", "licences", "tcb_status", "module_status", "qe_status"}
VERDICT_FIELDS = {"policy", "verdict", "reason", "policy_params", "time", "files_override", "failed_check"}
VERDICT_OPTIONAL = {"note"}


# -- reading --------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One verdict of a case, with everything that decides it."""

    case: str
    policy: str
    tee: str
    files: Files
    parameters: Mapping[str, Any]
    expected: Mapping[str, bytes]
    at: datetime
    accepted: bool
    words: frozenset[str]
    failed_check: str | None

    @property
    def name(self) -> str:
        return f"{self.case} [{self.policy}]"


def _only(found: Mapping[str, Any], must: set[str], may: set[str], where: str) -> None:
    wrong = sorted(set(found) - must - may) + [f"no {name}" for name in sorted(must - set(found))]
    if wrong:
        raise ManifestInvalid(f"{where}: {', '.join(wrong)}")


def read_manifest(path: Path, root: Path | None = None) -> list[Verdict]:
    """Every verdict of a manifest, files read and compared with their digests; raises `ManifestInvalid`."""
    manifest = parse_json(path.read_bytes(), where=str(path), limit=1 << 26)
    if not isinstance(manifest, dict) or manifest.get("format") != 2:
        raise ManifestInvalid(f"{path}: not a manifest of format 2")
    _only(manifest, {"format", "cases"}, {"roots"}, str(path))
    folder = root or path.parent
    return [verdict for case in manifest["cases"] for verdict in _verdicts(folder, case)]


def _verdicts(folder: Path, case: Mapping[str, Any]) -> Iterator[Verdict]:
    where = str(case.get("path"))
    _only(case, CASE_FIELDS, CASE_OPTIONAL, where)
    tee = case["tee"]
    if tee not in KINDS:
        raise ManifestInvalid(f"{where}: unknown tee {tee!r}")
    contents = {}
    for each in case["files"]:
        octets = (folder / case["path"] / each["name"]).read_bytes()
        if hashlib.sha256(octets).hexdigest() != each["sha256"]:
            raise ManifestInvalid(f"{where}: {each['name']} is not the recorded file")
        contents[each["name"]] = octets
    for verdict in case["expected"]:
        said = f"{where} [{verdict.get('policy')}]"
        rejects = verdict.get("verdict") == "reject"
        _only(verdict, VERDICT_FIELDS, VERDICT_OPTIONAL | ({"also_fails"} if rejects else set()), said)
        roles = {**case["roles"], **verdict["files_override"]}
        unknown = sorted(set(roles) - KINDS[tee].roles)
        if unknown:
            raise ManifestInvalid(f"{said}: unknown role {', '.join(unknown)}")
        parameters = _parameters(verdict["policy_params"], tee, said)
        accepted = verdict["verdict"] == "accept"
        words = [verdict["failed_check"], *verdict.get("also_fails", [])]
        well = words == [None] if accepted else set(words) <= WORDS and len(set(words)) == len(words)
        if verdict["verdict"] not in ("accept", "reject") or not well:
            raise ManifestInvalid(f"{said}: {verdict['verdict']} {words}")
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", verdict["time"]):
            raise ManifestInvalid(f"{said}: time {verdict['time']!r} is not one in UTC")
        absent = sorted(name for name in roles.values() if name not in contents)
        if absent:
            raise ManifestInvalid(f"{said}: no file {', '.join(absent)}")
        yield Verdict(
            case=where,
            policy=verdict["policy"],
            tee=tee,
            files={role: contents[name] for role, name in roles.items()},
            parameters=parameters,
            expected=_expectations(case["inputs"], parameters, tee, said),
            at=datetime.fromisoformat(verdict["time"]),
            accepted=accepted,
            words=frozenset(words) - {None},
            failed_check=verdict["failed_check"],
        )


def _parameters(values: Mapping[str, Any], tee: str, where: str) -> dict[str, Any]:
    for name, value in values.items():
        parameter = PARAMETERS.get(name)
        if parameter is None or tee not in parameter.tees:
            raise ManifestInvalid(f"{where}: parameter {name} is not known for {tee}")
        if not parameter.test(value):
            raise ManifestInvalid(f"{where}: parameter {name} cannot be {value!r}")
    return dict(values)


def _expectations(inputs: Mapping[str, Any], parameters: Mapping[str, Any], tee: str, where: str) -> dict[str, bytes]:
    """What the evidence has to carry: each input, unless a parameter stands in its place."""
    for name in inputs:
        parameter = PARAMETERS.get(f"expected_{name}") if name in INPUTS else None
        if parameter is None or tee not in parameter.tees:
            raise ManifestInvalid(f"{where}: input {name} is not known for {tee}")
        if not parameter.test(inputs[name]):
            raise ManifestInvalid(f"{where}: input {name} cannot be {inputs[name]!r}")
    expected = {}
    for name in INPUTS:
        value = parameters.get(f"expected_{name}", inputs.get(name))
        if value is not None:
            expected[name] = bytes.fromhex(value)
    return expected


# -- judging ----------------------------------------------------------------------


def unfit(verdict: Verdict) -> dict[str, str]:
    """Expected values of a size that this kind of TEE never has, by parameter: no evidence equals them."""
    kind, found = KINDS[verdict.tee], {}
    for name, sizes in (("expected_measurement", kind.sizes), ("expected_pcrs", kind.register_sizes)):
        value = verdict.parameters.get(name, {})
        values = value.values() if isinstance(value, dict) else [value]
        wrong_sizes = [f"{len(each) // 2} bytes" for each in values if len(each) // 2 not in sizes]
        if wrong_sizes:
            found[name] = ", ".join(wrong_sizes)
    return found


def policy_table(verdict: Verdict) -> dict[str, Any]:
    """The policy table that the verdict's parameters and inputs ask for."""
    table = KINDS[verdict.tee].table(verdict.files, verdict.parameters)
    for name, value in verdict.parameters.items():
        parameter = PARAMETERS[name]
        if name in unfit(verdict):
            continue
        if parameter.key and parameter.wrap and isinstance(value, dict):
            table[parameter.key] = {key: [each] for key, each in value.items()}
        elif parameter.key:
            table[parameter.key] = [value] if parameter.wrap else value
    if "host_data" in verdict.expected:
        table["host_data"] = [verdict.expected["host_data"].hex()]
    if "nonce" not in verdict.expected and verdict.tee in _QUOTED:
        table["allow_empty_nonce"] = True  # where no nonce is named, none is checked
    return table


def presented(verdict: Verdict) -> Presented:
    """The verdict's files as evidence and endorsements; raises `EvidenceMalformed`."""
    kind = KINDS[verdict.tee]
    endorsements = {role: octets for role, octets in verdict.files.items() if role in kind.endorsing}
    return Presented(Evidence(kind.tee, kind.body(verdict.files)), Endorsements(endorsements))


_VERIFIERS = Plugins().verifiers()


class _Told(logging.Handler):
    """Hears that a verifier raised: `judge` logs it and records a failed ``format`` check, as for a refusal."""

    def emit(self, record: logging.LogRecord) -> None:
        raise VerifierBroke(record.getMessage()) from (record.exc_info or (None, None))[1]


@contextlib.contextmanager
def nothing_breaks() -> Iterator[None]:
    """Inside, a verifier that raises raises here: `VerifierBroke`."""
    log, told = logging.getLogger("strongroom.evidence.judge"), _Told(logging.ERROR)
    log.addHandler(told)
    try:
        yield
    finally:
        log.removeHandler(told)


def judge_verdict(verdict: Verdict, brought: Presented | None = None, at: datetime | None = None) -> Checklist:
    """Every check that this verdict's policy makes; `brought` and `at` replace its evidence and clock."""
    checks = Checklist()
    kind = KINDS[verdict.tee]
    verifier = _VERIFIERS[kind.tee]
    at = at or verdict.at
    for name, said in unfit(verdict).items():
        checks.that(False, name, Word.MEASUREMENT, expected=said, found="measurements of another size")
    missing = _missing(kind, verdict)
    if missing:
        role, word = missing
        checks.that(False, role, word, expected=f"a file in role {role}", found="none")
        return checks
    try:
        brought = brought or presented(verdict)
        own = verifier.policy(Fields(policy_table(verdict), where=kind.tee))
        if verdict.parameters.get("endorsements_only"):
            verifier.verify_endorsements(brought.endorsements, at, own, checks)  # type: ignore[attr-defined]
            return checks
    except (EvidenceMalformed, MalformedInput) as error:
        checks.that(False, "format", Word.FORMAT, expected="files that can be read", found=str(error))
        return checks
    count = verdict.parameters.get("require_gpu_count")
    policy = Policy("manifest", tees={kind.tee: own}, devices={} if count is None else {"gpu": count})
    with nothing_breaks():
        claims = examine(brought, policy, at, _VERIFIERS, checks)
    if claims is not None:
        _compare(claims, verdict, checks)
        if count is not None:
            count_devices([claims], policy, checks)
    return checks


def _missing(kind: Kind, verdict: Verdict) -> tuple[str, Word] | None:
    if verdict.parameters.get("endorsements_only"):
        return None
    if kind.needs and kind.needs not in verdict.files:
        return kind.needs, Word.EVIDENCE_MISSING
    if kind.needs_too and kind.needs_too not in verdict.files:
        return kind.needs_too, Word.COLLATERAL_MISSING
    return None


def _compare(claims: Claims, verdict: Verdict, checks: Checklist) -> None:
    """Each expected value against the evidence's own."""
    for name, expected in verdict.expected.items():
        if name == "host_data":
            continue  # the policy table has it
        if name == "nonce" and claims.binding_word is Word.EVIDENCE_MISSING:
            continue  # there is no quote that could carry one, and that has its own check
        if name == "nonce" and not expected and not verdict.parameters.get("allow_empty_nonce"):
            checks.that(False, "nonce", Word.NONCE, expected="a nonce", found="an expected nonce of zero length")
            continue
        if name == "user_data" and verdict.tee in _AZURE and claims.get(name) is None and checks.failed:
            continue  # nothing vouched for the runtime data that holds it, and that has its own check
        found = _carried(claims, name)
        word = Word.NONCE if name == "nonce" else Word.BINDING
        checks.that(found == expected, name, word, expected=expected.hex(), found=found.hex())


def _carried(claims: Claims, name: str) -> bytes:
    """The value of that name in the evidence: a claim, or else the field that binds."""
    value = claims.get(name)
    if isinstance(value, str):
        return bytes.fromhex(value)
    if isinstance(value, bytes):
        return value
    return claims.report_data if name in ("report_data", "nonce") else b""


def wrong(verdict: Verdict, checks: Checklist) -> str:
    """Why these checks are not the verdict; empty where they are."""
    failed = {str(check.word) for check in checks.failed}
    told = "; ".join(f"{check.name}: expected {check.expected}, found {check.found}" for check in checks.failed)
    if not checks.all:
        return "nothing was checked"
    if verdict.accepted:
        return f"refused: {told}" if failed else ""
    if not failed:
        return f"accepted; {verdict.failed_check} should have failed"
    if not failed <= verdict.words:
        return f"failed for {sorted(failed)}, expected {sorted(verdict.words)}: {told}"
    if verdict.failed_check not in failed and Word.FORMAT not in failed:
        return f"{verdict.failed_check} did not fail, only {sorted(failed)}: {told}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, metavar="MANIFEST.json")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the cases' folders lie; default: beside it")
    asked = parser.parse_args(arguments)
    try:
        verdicts = read_manifest(asked.manifest, asked.root)
    except (ManifestInvalid, MalformedInput, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{asked.manifest}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    passed = failed = 0
    by_case: dict[str, list[str]] = {}
    for verdict in verdicts:
        try:
            trouble = wrong(verdict, judge_verdict(verdict))
        except Exception as error:  # whatever it is, the other verdicts are judged too
            trouble = f"broke: {error}: {error.__cause__ or type(error).__name__!r}"
        passed, failed = passed + (not trouble), failed + bool(trouble)
        by_case.setdefault(verdict.case, []).append(f"{verdict.policy}: {trouble}" if trouble else "")
    for case, troubles in by_case.items():
        bad = [each for each in troubles if each]
        print(f"{case}: " + (" | ".join(bad) if bad else f"ok, {len(troubles)} of {len(troubles)} verdicts"))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
