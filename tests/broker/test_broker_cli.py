"""The key owner's commands, as they are typed, against a broker that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import strongroom.plugins as plugins
import typer
from broker.broker_in_a_room import APPRAISAL, MEASUREMENT, broker_room
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.allowing import allow
from strongroom.broker.audit import NoteKey
from strongroom.broker.client import BrokerAdmin
from strongroom.broker.templates import TEMPLATES
from strongroom.cli import audit, broker, key, policy, release
from strongroom.errors import (
    AttestationFailed,
    AuditError,
    ConfigurationInvalid,
    KeyFileInvalid,
    MalformedInput,
    PluginInvalid,
    ReleaseDenied,
    ReleaseError,
    ResourceMissing,
)
from strongroom.hookspecs import PolicyTemplate, hookimpl
from strongroom.plugins import Plugins
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    for verb in (broker, key, policy, release, audit):
        verb.register(app)
    return app


@pytest.fixture
def room(tmp_path):
    with broker_room(tmp_path) as room:
        yield room


@pytest.fixture
def run(app, room):
    def run(*words, connected=True, fails=False):
        ends = ["--broker", room.url, "--admin-key", str(room.folder / "admin.key")] if connected else []
        result = CliRunner().invoke(app, [*map(str, words), *ends])
        if not fails and result.exit_code != 0:
            raise result.exception
        return result

    return run


def test_status_says_what_is_in_force(run):
    fields = json.loads(run("broker", "status", "--json").stdout)
    assert (fields["appraisal_policy"], fields["tees"], fields["release_policy"]) == ("tests", ["simulated"], True)


def test_keys_are_listed_by_name_and_never_shown(run, room):
    name, _, model_key = room.register(1)
    shown = run("key", "list").stdout
    assert str(name) in shown and "1 keys" in shown
    assert model_key.reveal().hex() not in shown


def test_an_owner_deletes_a_key_of_its_own_and_no_other(app, run, room, tmp_path):
    mine, archive, _ = room.register(1)
    others, other_archive, _ = room.register(2, tenant="other")
    owner = tmp_path / "acme.key"
    run("broker", "administrator", room.folder, owner, "--role", "owner", "--repository", "acme", connected=False)
    ends = ["--broker", room.url, "--admin-key", owner, "--role", "owner"]
    room.client().fetch(tuple(mine), archive)
    assert "is forgotten" in run("key", "delete", mine, *ends, connected=False).stdout
    with pytest.raises(ResourceMissing):
        room.client().fetch(tuple(mine), archive)
    refused = run("key", "delete", others, *ends, connected=False, fails=True)
    assert "AdminAuthAccess" in str(refused.exception)
    room.client().fetch(tuple(others), other_archive)
    assert json.loads(run("broker", "status", *ends, "--json", connected=False).stdout)["broker"] == room.broker.id


def test_an_owner_sees_the_revocations_of_its_own_repository_and_an_auditor_all(run, room, tmp_path):
    _, mine, _ = room.register(1)
    _, others, _ = room.register(2, tenant="other")
    revoked = [
        ("lineage", "acme/digits"), ("lineage", "other/digits"), ("archive", str(mine)), ("archive", str(others)),
        ("measurement", "ab" * 32), ("keeper", "07" * 16),
    ]  # fmt: skip
    for kind, value in revoked:
        room.admin().revoke(kind, value)
    owner, auditor = tmp_path / "acme.key", tmp_path / "auditor.key"
    run("broker", "administrator", room.folder, owner, "--role", "owner", "--repository", "acme", connected=False)
    run("broker", "administrator", room.folder, auditor, connected=False)

    def seen(key, role):
        return {(each["kind"], each["value"]) for each in room.admin(key, role).revocations()}

    assert seen(owner, "owner") == {("lineage", "acme/digits"), ("archive", str(mine))}
    assert seen(auditor, "auditor") == set(revoked)


def test_a_revoked_archive_is_released_no_more_and_restored_again(run, room):
    name, archive, _ = room.register(1)
    room.client().fetch(tuple(name), archive)
    run("key", "revoke", archive, "--reason", "leaked")
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)
    run("release", "restore", "archive", archive)
    room.client().fetch(tuple(name), archive)


def test_a_minimum_version_refuses_older_ones_and_never_falls(run, room):
    old, old_archive, _ = room.register(1, version=1)
    new, new_archive, _ = room.register(2, version=2)
    run("release", "minimum", "acme/digits", 2)
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(old), old_archive)
    room.client().fetch(tuple(new), new_archive)
    assert "version 2 and newer" in run("release", "minimum", "acme/digits", 1).stdout


def test_a_limit_is_set_changed_in_part_and_taken_away(run):
    assert "3 keepers, 900 seconds" in run("release", "limit", "acme/digits", "--keepers", 3, "--lease", 900).stdout
    assert "3 keepers, 60 seconds" in run("release", "limit", "acme/digits", "--lease", 60).stdout
    said = run("release", "limit", "acme/digits", "--keepers", "none", "--lease", "none").stdout
    assert "any number of keepers, any number of seconds" in said


def test_a_limit_of_nothing_or_of_words_is_refused(run):
    assert "nothing to change" in str(run("release", "limit", "acme/digits", fails=True).exception)
    assert run("release", "limit", "acme/digits", "--keepers", "many", fails=True).exit_code == 2
    assert run("release", "limit", "acme/digits", "--lease", 0, fails=True).exit_code == 2


def test_a_lease_is_listed_and_ended(run, room):
    name, archive, _ = room.register(1, lease_s=600)
    room.client().fetch(tuple(name), archive)
    [lease] = json.loads(run("release", "list", "--json").stdout)
    assert lease["resource"] == str(name) and lease["measurement"] == MEASUREMENT.hex()
    run("release", "end", lease["lease"])
    assert "0 leases" in run("release", "list").stdout


@pytest.mark.parametrize(
    "lease", ["../../../resource/{name}", "", "5f0c", "5F" * 16, "5f" * 16 + "\n", "5f" * 15 + "/."]
)
def test_what_is_no_id_of_a_lease_ends_none_and_deletes_no_key(lease, run, room):
    name, archive, _ = room.register(1)
    refused = run("release", "end", lease.format(name=name), fails=True).exception
    assert isinstance(refused, MalformedInput) and "release list" in refused.hint
    room.client().fetch(tuple(name), archive)


@pytest.mark.parametrize("segment", ["", ".", "..", "a?b", "a#b", "%2e%2e", "a\\b", "a b", "a\nb", "\udcff", "é"])
def test_no_signed_request_goes_to_a_path_that_could_lead_elsewhere(segment, room):
    with pytest.raises(MalformedInput, match="no path at a broker"):
        room.admin().call("DELETE", f"strongroom/admin/leases/{segment}")


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "http://[::1", "127.0.0.1", "http://h:port", "http://a..b", "http://\udcff"]
)
def test_a_brokers_address_that_is_none_is_said_to_be_none(url, room):
    with pytest.raises(ConfigurationInvalid, match="no broker's address"):
        BrokerAdmin(url, room.folder / "admin.key").status()


def test_a_policy_is_set_shown_and_extended(run, room, tmp_path):
    name, archive, _ = room.register(1)
    other = bytes([9]) * 32
    with pytest.raises(AttestationFailed):
        room.client(measurement=other).fetch(tuple(name), archive)
    run("policy", "allow", "simulated", "--measurement", other.hex())
    room.client(measurement=other).fetch(tuple(name), archive)
    assert other.hex() in run("policy", "get", "appraisal").stdout
    run("policy", "set", "hardware-only")
    assert "hardware-only" in run("policy", "get", "release").stdout
    with pytest.raises(ReleaseDenied):
        room.client().fetch(tuple(name), archive)


def test_a_policy_with_an_unproved_builtin_is_refused_by_the_broker_too(run, room, tmp_path):
    with pytest.raises(ReleaseError, match=r"semver\.compare"):
        room.admin().set_release_policy('package policy\n\nallow if { not semver.compare("1", "2") }\n')


def test_a_log_is_exported_verified_and_proved(run, room, tmp_path):
    name, archive, _ = room.register(1)
    log, kept = tmp_path / "log", tmp_path / "kept"
    verifier = room.broker.audit.key.serialise()
    assert "entries" in run("audit", "export", log).stdout
    kept.write_text((log / "checkpoint").read_text())
    room.client().fetch(tuple(name), archive)
    run("audit", "export", log)
    said = run("audit", "verify", log, "--key", verifier, "--since", kept, connected=False).stdout
    assert "is its beginning" in said

    for words in (["--entry", "2"], ["--since", kept]):
        proof = tmp_path / "proof.json"
        proof.write_text(run("audit", "prove", log, "--key", verifier, *words, connected=False).stdout)
        assert run("audit", "verify", proof, "--key", verifier, connected=False).stdout
        fields = json.loads(proof.read_text())
        fields["proof"] = fields["proof"][1:]
        proof.write_text(json.dumps(fields))
        assert run("audit", "verify", proof, "--key", verifier, connected=False, fails=True).exit_code == 1

    kept.write_bytes(b"\xff")
    for words in (["verify"], ["prove"]):
        garbled = run("audit", *words, log, "--key", verifier, "--since", kept, connected=False, fails=True).exception
        assert isinstance(garbled, AuditError) and "no text in UTF-8" in str(garbled)

    stranger = NoteKey(room.broker.audit.key.name, bytes(32)).serialise()
    assert run("audit", "verify", log, "--key", stranger, connected=False, fails=True).exit_code == 1
    assert "event=release" in run("audit", "show", "--last", "1").stdout


def test_policy_test_shows_rules_for_a_token_and_for_raw_evidence(run, tmp_path):
    claims = tmp_path / "claims.json"
    claims.write_text(json.dumps({"submods": {"cpu0": {"ear.status": "affirming"}}}))
    refused = run("policy", "test", "measured", claims, connected=False, fails=True)
    assert refused.exit_code == 1 and "refused" in refused.stdout and "rule  allow = false" in refused.stderr
    assert "token cpu0 is affirming: no claims" in refused.stderr
    stops = 'stops here  line 19, allow: affirming(input.submods.cpu0["ear.trustworthiness-vector"].executables)'
    assert stops in refused.stderr

    owners = tmp_path / "owners.rego"
    owners.write_text('package policy\n\nimport rego.v1\n\nallow if data.owner == "hospital"\n')
    assert run("policy", "test", owners, claims, "--owner", "hospital", connected=False).stdout.startswith("granted")
    assert "refused" in run("policy", "test", owners, claims, connected=False, fails=True).stdout

    evidence, appraisal = tmp_path / "evidence.json", tmp_path / "appraisal.toml"
    appraisal.write_text(APPRAISAL)
    body = SimulatedAttester(measurement=MEASUREMENT).evidence(b"x" * 48).body
    evidence.write_text(json.dumps({"tee": "simulated", "evidence": body}))
    words = ["policy", "test", "development", evidence, "--appraisal", appraisal]
    granted = run(*words, connected=False)
    assert granted.stdout.startswith("granted") and "ok    simulated.measurement" in granted.stderr

    body = SimulatedAttester(measurement=bytes(32)).evidence(b"x" * 48).body
    evidence.write_text(json.dumps({"tee": "simulated", "evidence": body}))
    refused = run(*words, connected=False, fails=True)
    assert "appraisal policy refuses" in refused.stdout and "FAIL  simulated.measurement" in refused.stderr


OFFICE_HOURS = "# for the office\npackage policy\n\nimport rego.v1\n\nallow if input.submods.cpu0\n"
APPRAISING = '# machines of the office\nname = "office"\n'


@pytest.fixture
def office(monkeypatch):
    """An installed plugin that offers a release policy and an appraisal policy."""

    class Office:
        @hookimpl
        def strongroom_policies(self):
            return [PolicyTemplate("office", "rego", OFFICE_HOURS), PolicyTemplate("machines", "toml", APPRAISING)]

    def entry_points(*, group, name):
        dist = SimpleNamespace(name="office-package", version="1", read_text=lambda name: None)
        return [SimpleNamespace(load=Office, dist=dist)] if name == "office" else []

    monkeypatch.setattr(plugins.metadata, "entry_points", entry_points)


def test_templates_of_a_named_plugin_are_listed_and_printed_beside_our_own(run, office):
    ours = run("policy", "templates", connected=False).stdout
    assert [line.split()[0] for line in ours.splitlines()] == list(TEMPLATES)
    listed = run("policy", "templates", "--plugin", "office", connected=False).stdout
    assert listed == ours + f"{'office':<22}for the office\n{'machines':<22}appraisal: machines of the office\n"
    assert run("policy", "templates", "machines", "--plugin", "office", connected=False).stdout == APPRAISING
    assert "package policy" in run("policy", "templates", "measured", connected=False).stdout
    with pytest.raises(ConfigurationInvalid, match="no policy template is called 'office'") as refused:
        raise run("policy", "templates", "office", connected=False, fails=True).exception
    assert "--plugin" in refused.value.hint


def test_a_plugins_release_policy_can_be_tried_and_set_where_the_plugin_is_named(run, room, office, tmp_path):
    claims = tmp_path / "claims.json"
    claims.write_text(json.dumps({"submods": {"cpu0": {"ear.status": "warning"}}}))
    words = ["policy", "test", "office", claims]
    assert run(*words, "--plugin", "office", connected=False).stdout.startswith("granted")
    for refused in (
        run(*words, connected=False, fails=True),
        run("policy", "test", "machines", claims, "--plugin", "office", connected=False, fails=True),
        run("policy", "set", "office", fails=True),
    ):
        assert isinstance(refused.exception, ConfigurationInvalid)
    run("policy", "set", "office", "--plugin", "office")
    assert room.broker.store.policy("release") == OFFICE_HOURS


def test_a_broker_serves_a_plugins_release_policy_by_its_name_and_no_other(office, tmp_path):
    with broker_room(tmp_path / "a", rego="office", plugins=Plugins.load(["office"])) as room:
        assert room.broker.store.policy("release") == OFFICE_HOURS
    with pytest.raises(ConfigurationInvalid, match="no policy template"), broker_room(tmp_path / "b", rego="office"):
        pass


def test_no_plugin_offers_a_policy_by_the_name_of_ours(monkeypatch):
    class Greedy:
        @hookimpl
        def strongroom_policies(self):
            return [PolicyTemplate("measured", "rego", OFFICE_HOURS)]

    dist = SimpleNamespace(name="greedy-package", version="1", read_text=lambda name: None)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: [SimpleNamespace(load=Greedy, dist=dist)])
    with pytest.raises(PluginInvalid, match="'measured', which is offered already"):
        Plugins.load(["greedy"])


def test_a_broker_is_made_once_and_only_in_an_empty_folder(run, tmp_path):
    folder = tmp_path / "mine"
    made = json.loads(run("broker", "init", folder, "--host", "keys.example", "--json", connected=False).stdout)
    assert (folder / "tls.crt").is_file() and made["admin_key"] == str(folder / "admin.key")
    assert (folder / "admin.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationInvalid, match="not empty"):
        run("broker", "init", folder, connected=False)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--host", "bad host name"], ConfigurationInvalid, "neither a DNS name nor an address"),
        (["--host", "keys.example", "--host", "ü"], ConfigurationInvalid, "neither a DNS name nor an address"),
        (["--host", ""], ConfigurationInvalid, "neither a DNS name nor an address"),
        (["--name", "our broker"], ConfigurationInvalid, "cannot sign an audit log"),
        (["--passphrase-file", "latin"], KeyFileInvalid, "not UTF-8"),
        (["--passphrase-file", "empty"], KeyFileInvalid, "empty passphrase"),
        (["--root-key", "nobody"], ConfigurationInvalid, "no root key provider"),
    ],
)
def test_what_no_broker_can_be_made_with_is_refused_before_there_is_a_folder(app, tmp_path, words, error, said):
    for name, octets in (("latin", "gr\xfcn\n".encode("latin-1")), ("empty", b"")):
        (tmp_path / name).write_bytes(octets)
        (tmp_path / name).chmod(0o600)
    words = [str(tmp_path / word) if word in ("latin", "empty") else word for word in words]
    result = CliRunner().invoke(app, ["broker", "init", str(tmp_path / "mine"), *words])
    assert isinstance(result.exception, error) and said in str(result.exception)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("stood", [True, False])
def test_a_broker_that_cannot_be_finished_leaves_nothing_behind(app, tmp_path, monkeypatch, stood):
    from strongroom.broker import directory

    def full(*_):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "mine"
    if stood:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(directory, "self_signed", full)
        failed = CliRunner().invoke(app, ["broker", "init", str(folder), "--host", "keys.example"])
    assert isinstance(failed.exception, OSError)
    assert folder.exists() == stood and not (stood and list(folder.iterdir()))
    assert CliRunner().invoke(app, ["broker", "init", str(folder), "--host", "keys.example"]).exit_code == 0


@pytest.mark.parametrize("name", ["policy.toml", "policy.rego"])
def test_a_policy_that_is_not_utf_8_is_refused_in_one_sentence(run, room, tmp_path, name):
    from strongroom.broker.serve import set_policies

    path = tmp_path / name
    path.write_bytes("# gr\xfcn\n".encode("latin-1"))
    assert "not UTF-8" in str(run("policy", "set", path, fails=True).exception)
    with pytest.raises(ConfigurationInvalid, match="not UTF-8"):
        set_policies(room.broker, *((path, None) if path.suffix == ".toml" else (None, path)))


def test_a_policy_of_an_unknown_name_is_not_shown(run):
    assert "no policy is called 'foo'" in str(run("policy", "get", "foo", fails=True).exception)


def test_a_root_key_is_rotated_and_everything_opens_again(run, tmp_path):
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    folder = tmp_path / "mine"
    run("broker", "init", folder, "--passphrase-file", secret, connected=False)
    before = (folder / "root.key").read_bytes()
    assert "3 sealed values" in run("key", "rotate", folder, "--passphrase-file", secret, connected=False).stdout
    assert (folder / "root.key").read_bytes() != before
    from strongroom.broker.directory import open_broker

    open_broker(folder, passphrase="correct horse").store.close()


def test_serve_prints_its_url_as_json_when_it_is_ready(tmp_path):
    from strongroom.broker import directory

    directory.init(tmp_path / "b")
    words = ["-m", "strongroom.cli", "broker", "serve", str(tmp_path / "b"), "--listen", "127.0.0.1:0", "--json"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = json.loads(process.stdout.readline())["url"]
        import requests

        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
    finally:
        process.terminate()
        assert process.wait(15) == 0


def test_an_administrator_is_made_and_forgotten_while_the_broker_runs(run, room, tmp_path):
    auditor = tmp_path / "auditor.key"
    said = run("broker", "administrator", room.folder, auditor, "--role", "auditor", connected=False).stdout
    key_id = said.split("auditor ")[1].strip()
    assert room.admin(auditor, "auditor").checkpoint()
    with pytest.raises(ReleaseError, match="AdminAuthAccess"):
        room.admin(auditor, "auditor").revoke("lineage", "acme/digits")
    name, archive, _ = room.register(1)  # the running broker goes on writing to the log that we wrote to
    room.client().fetch(tuple(name), archive)
    run("broker", "administrator", room.folder, "--remove", key_id, connected=False)
    with pytest.raises(ReleaseError, match="AdminAuthAccess"):
        room.admin(auditor, "auditor").checkpoint()
    room.client().fetch(tuple(name), archive)
    log = tmp_path / "log"
    run("audit", "export", log)
    run("audit", "verify", log, "--key", room.broker.audit.key.serialise(), connected=False)


def test_the_last_administrator_cannot_be_forgotten(run, room):
    from strongroom.broker.admin import AdminKey, key_id_of

    key_id = key_id_of(AdminKey.load(room.folder / "admin.key").private.public_key())
    with pytest.raises(ConfigurationInvalid, match="stays"):
        run("broker", "administrator", room.folder, "--remove", key_id, connected=False)
    assert room.admin().status()


# -- what programs read, and the line that people do -------------------------------------


def test_what_changes_a_broker_is_told_as_json_too(run, room, tmp_path):
    name, archive, _ = room.register(1, lease_s=600)
    room.client().fetch(tuple(name), archive)
    [lease] = json.loads(run("release", "list", "--json").stdout)

    def told(*words, **options):
        return json.loads(run(*words, "--json", **options).stdout)

    assert told("release", "revoke", "lineage", "acme/digits") == {
        "kind": "lineage", "value": "acme/digits", "revoked": True,
    }  # fmt: skip
    assert told("release", "restore", "lineage", "acme/digits")["revoked"] is False
    assert told("release", "minimum", "acme/digits", 1) == {"lineage": "acme/digits", "version": 1}
    assert told("release", "limit", "acme/digits", "--keepers", 3) == {
        "lineage": "acme/digits", "keepers": 3, "lease_s": None,
    }  # fmt: skip
    assert told("release", "end", lease["lease"]) == {"lease": lease["lease"], "ended": True}
    assert told("key", "revoke", archive) == {"kind": "archive", "value": str(archive), "revoked": True}
    assert told("key", "delete", name) == {"resource": str(name), "deleted": True}
    assert told("policy", "set", "hardware-only") == {"kind": "release", "policy": "hardware-only"}
    assert "hardware-only" in told("policy", "get", "release")["policy"]
    assert told("policy", "allow", "simulated", "--measurement", "AB" * 32)["measurement"] == "ab" * 32
    made = told("broker", "administrator", room.folder, tmp_path / "a.key", connected=False)
    assert (made["role"], made["key"]) == ("auditor", str(tmp_path / "a.key"))
    gone = told("broker", "administrator", room.folder, "--remove", made["id"], connected=False)
    assert gone == {"id": made["id"], "removed": True}
    entries = json.loads(run("broker", "status", "--json").stdout)["audit_entries"]
    exported = told("audit", "export", tmp_path / "log")
    assert exported["directory"] == str(tmp_path / "log") and exported["entries"] >= entries


def test_a_key_of_an_archive_that_was_sealed_elsewhere_is_added(run, room, tmp_path):
    from archive.makings import model_files, write_mar
    from strongroom.archive.modelkey import save_model_key
    from strongroom.archive.seal import seal_archive
    from strongroom.archive.signature import AuthorKey

    write_mar(tmp_path / "tiny.mar", model_files())
    sealed = seal_archive(tmp_path / "tiny.mar", tmp_path / "s.mar", author=AuthorKey.generate())
    save_model_key(tmp_path / "k", sealed.digest, sealed.key)
    told = json.loads(run("key", "add", sealed.path, "--key", tmp_path / "k", "--lease", 60, "--json").stdout)

    resource = "/".join(sealed.resource)
    assert told == {"resource": resource, "digest": str(sealed.digest), "broker": room.url, "lease_s": 60}
    assert resource in run("key", "list").stdout


def test_a_backup_a_restore_and_a_rotation_are_told_as_json_too(run, tmp_path):
    folder, copy = tmp_path / "b", tmp_path / "copy"

    def told(*words):
        return json.loads(run(*words, "--json", connected=False).stdout)

    told("broker", "init", folder)
    backup = told("broker", "backup", folder, copy)
    assert backup["backup"] == str(copy) and backup["size"] > 0
    restored = told("broker", "restore", copy, folder)
    assert set(restored) == {"directory", "entries", "replayed", "lost", "administrators", "policies"}
    assert restored["directory"] == str(folder) and restored["lost"] == []
    assert told("key", "rotate", folder) == {"directory": str(folder), "sealed_values": 3}


def test_what_is_shown_ends_with_a_line_for_people_and_not_for_programs(run, room, tmp_path):
    log = tmp_path / "log"
    run("audit", "export", log)
    verifier = room.broker.audit.key.serialise()
    for words, connected, said in (
        (["broker", "status"], True, "the broker answers"),
        (["audit", "show"], True, "entries"),
        (["audit", "prove", log, "--key", verifier, "--entry", 0], False, "checks it without the log"),
        (["policy", "get", "appraisal"], True, "is in force"),
        (["policy", "templates"], False, "4 templates"),
    ):
        shown = run(*words, connected=connected)
        assert said in shown.stderr.splitlines()[-1] and said not in shown.stdout
        assert run(*words, "--json", connected=connected).stderr == ""
    told = json.loads(run("policy", "templates", "--json", connected=False).stdout)
    assert {"name", "kind", "grants"} == set(told[0]) and "measured" in {each["name"] for each in told}


# -- editing a policy's text ------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'name = "a"\n[snp]\nmeasurements = []\n',
        'name = "a"\n[snp]\nmeasurements = ["00"] # keep me\n[tdx]\nmr_td = []\n',
        'name = "a"\n[snp] # ours\nmax_vmpl = 0\n\n[tdx]\nmeasurements = ["11"]\n',
        'name = "a"\n[snp]\nmeasurements = [\n  "00", # one\n  "01",\n]\n',
        'name = "a"\n[snp]',
    ],
)
def test_a_value_is_added_and_everything_else_stays(text):
    import tomllib

    before, after = tomllib.loads(text), tomllib.loads(allow(text, "snp", "measurements", "aa"))
    assert after["snp"].pop("measurements")[0] == "aa"
    before["snp"].pop("measurements", None)
    assert before == after


def test_a_value_that_is_there_changes_nothing():
    text = 'name = "a"\n[snp]\nmeasurements = ["aa"]\n'
    assert allow(text, "snp", "measurements", "aa") == text


@pytest.mark.parametrize("text", ['name = "a"\n', "snp = {measurements = []}\n", '[snp]\nmeasurements = "x"\n', "x ="])
def test_a_policy_that_cannot_be_extended_safely_is_left_alone(text):
    with pytest.raises(ConfigurationInvalid):
        allow(text, "snp", "measurements", "aa")
