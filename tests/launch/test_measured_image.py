"""The measured guest image: built, booted with a software TPM, attacked (docs/guides/measured-image.md).

The guest is real as far as QEMU's emulation goes: Debian's kernel, OVMF, dm-verity, a TPM 2.0, the launcher,
TorchServe and a worker in it; the broker and the client are on this machine. The processor is emulated also where
there is KVM, so that every machine runs the same test; the first answer takes some minutes.

`STRONGROOM_IMAGE` names a folder of `build`, to try the rest without building again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from doubles.models import plain_archive
from doubles.software_tpm import SoftwareTpm
from strongroom.demo.stage import COMMAND, free_port, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400)]

RECIPE = Path(__file__).parent.parent.parent / "docs" / "guides" / "measured-image"
HANDLER = Path(__file__).parent.parent / "doubles" / "prying_handler.py"
PATIENCE = 1200
"""Seconds for a boot until the first answer: the JVM and Python under emulation, on a machine that others use too."""
TOOLS = ("mmdebstrap", "mksquashfs", "veritysetup", "cpio", "qemu-system-x86_64", "swtpm")


def recipe(script: str, *arguments: object, **environment: str) -> str:
    """One script of the recipe; what it printed."""
    done = subprocess.run(
        [str(RECIPE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )
    assert done.returncode == 0, f"{script}: {done.stderr[-3000:]}"
    return done.stdout


def digests(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE / "digests.py"), *map(str, arguments)], capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder of `build`."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"SKIPPED LOUDLY: needs root and {', '.join(missing) or 'nothing else'} (.ci/apt-long.txt)")
    pytest.importorskip("tpm2_pytss", reason="SKIPPED LOUDLY: tpm2-pytss is not installed")
    if given := os.environ.get("STRONGROOM_IMAGE"):
        return Path(given)
    out = tmp_path_factory.mktemp("image") / "out"
    recipe("build", out)
    return out


class Guest:
    """A running QEMU. `console` is what it has said so far."""

    def __init__(self, image: Path, models: Path, log: Path, **environment: str) -> None:
        self._log = log
        with log.open("wb") as console:
            self.process = subprocess.Popen(
                [str(RECIPE / "boot"), str(image), str(models)],
                stdout=console,
                stderr=console,
                env=os.environ | {"ACCEL": "tcg"} | environment,
                start_new_session=True,
            )

    @property
    def console(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def wait_for(self, *texts: str, seconds: float = PATIENCE) -> str:
        """Until the console says one of `texts`, which is given back; an error if QEMU ends before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            said = self.console
            for text in texts:
                if text in said:
                    return text
            assert self.process.poll() is None, f"QEMU ended before {texts}:\n{said[-3000:]}"
            time.sleep(0.5)
        raise AssertionError(f"nothing of {texts} after {seconds} s:\n{self.console[-3000:]}")

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until the guest is off."""
        self.process.wait(seconds)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Owner:
    """Author, key owner and client in one folder: a broker on this machine, a sealed model, a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.author = run("keygen", "author", "author", folder=folder)["id"]
        run("broker", "init", "broker", folder=folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log = (folder / "broker.log").open("wb")
        serve = ["broker", "serve", "broker", "--listen", f"127.0.0.1:{self.port}", "--rego", "measured", "--json"]
        self.broker = subprocess.Popen(
            [*COMMAND, *serve],
            cwd=folder, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
        )  # fmt: skip
        assert self.broker.stdout is not None
        assert json.loads(self.broker.stdout.readline())["url"] == self.url
        plain_archive(folder / "pry.plain.mar", {HANDLER.name: HANDLER.read_bytes()}, name="pry", handler=HANDLER.name)
        (folder / "store").mkdir()
        seal = ["--author", "author.key", "--broker", self.url, "--admin-key", "broker/admin.key"]
        run("seal", "pry.plain.mar", *seal, "-o", "store/pry.mar", folder=folder)
        self.models = folder / "models.img"
        subprocess.run(["mksquashfs", folder / "store", self.models, "-quiet", "-no-progress"], check=True)
        self.config = folder / "config"
        shutil.copytree(RECIPE / "example", self.config)
        shutil.copy(folder / "author.pub", self.config)
        text = (self.config / "strongroom.toml").read_text()
        (self.config / "strongroom.toml").write_text(text.replace("10.0.2.2:8443", f"10.0.2.2:{self.port}"))

    def set_policy(self, text: str) -> None:
        """For the broker as it is; for clients with the author."""
        (self.folder / "policy.toml").write_text(text)
        (self.folder / "client.toml").write_text(f'{text}\n[admitted]\nauthors = ["{self.author}"]\n')
        done = subprocess.run(
            [*COMMAND, "policy", "set", "policy.toml", "--broker", self.url, "--admin-key", "broker/admin.key"],
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def ask(self, port: int) -> subprocess.CompletedProcess[str]:
        """One sealed request, by the command line."""
        url = f"http://127.0.0.1:{port}/predictions/pry"
        return subprocess.run(
            [*COMMAND, "request", url, "-d", "pry", "--policy", "client.toml", "--timeout", "300"],
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip

    def close(self) -> None:
        self.broker.terminate()
        self.broker.wait(20)


@pytest.fixture(scope="module")
def owner(tmp_path_factory, built):
    party = Owner(tmp_path_factory.mktemp("owner"))
    yield party
    party.close()


@pytest.fixture(scope="module")
def configured(built, owner, tmp_path_factory):
    """The image with the owner's configuration; the root is linked, since nothing writes to it."""
    folder = tmp_path_factory.mktemp("configured")
    for name in ("vmlinuz", "initrd.base", "cmdline", "root.img"):
        (folder / name).symlink_to(built / name)
    printed = recipe("configure", folder, owner.config)
    assert "verity root hash" in printed
    return folder


@pytest.fixture(scope="module")
def tpm(tmp_path_factory, built):
    return SoftwareTpm(tmp_path_factory.mktemp("tpm") / "machine")


@pytest.fixture(scope="module")
def serving(configured, owner, tpm, tmp_path_factory):
    """(the guest, its port): booted, measured, believed by the broker, and answering."""
    port = free_port()
    log = tmp_path_factory.mktemp("console") / "console.log"
    guest = Guest(configured, owner.models, log, TPM=str(tpm.state), PORT=str(port))
    try:
        guest.wait_for("reference values end", seconds=PATIENCE)
        roots = log.with_name("makers.pem")
        roots.write_text(tpm.roots)
        done = digests(configured, "--first-boot", log, "--ek-roots", roots)
        assert done.returncode == 0, done.stderr
        owner.set_policy(done.stdout)
        guest.wait_for("model pry is open")
        deadline = time.monotonic() + PATIENCE
        while (answer := owner.ask(port)).returncode != 0:
            assert time.monotonic() < deadline, f"{answer.stderr}\n{guest.console[-3000:]}"
            time.sleep(5)
        yield guest, port, json.loads(answer.stdout)
    finally:
        guest.close()


def test_the_guest_attests_with_its_tpm_and_answers_a_sealed_request(serving, owner):
    guest, port, _ = serving
    assert "launch.configuration" in guest.console
    verified = subprocess.run(
        [*COMMAND, "verify-server", f"http://127.0.0.1:{port}/predictions/pry", "--policy", "client.toml"],
        cwd=owner.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    for check in ("tpm.signature", "tpm.pinned", "tpm.event-log", "tpm.launch-configuration", "bundle.nonce"):
        assert f"ok    {check}:" in verified.stdout
    assert "simulated" not in verified.stdout


def test_the_policy_holds_kernel_command_line_and_initrd_and_they_are_what_was_computed(serving, owner, configured):
    """`digests.py` refuses a console whose PCR 9 is another; this looks that it was compared and demanded at all."""
    policy = tomllib.loads((owner.folder / "policy.toml").read_text())
    computed = json.loads(digests(configured, "--json").stdout)
    assert policy["tpm"]["pcrs"]["9"] == [computed["tpm_pcr9_sha256"]]
    assert set(policy["tpm"]["pcrs"]) == {"0", "2", "4", "7", "9"}
    assert policy["tpm"]["launch"]["configuration"] == [computed["configuration"]]
    assert policy["tpm"]["ak_trust"] == "pinned"


def test_another_policy_than_the_guests_measurement_sends_nothing(serving, owner, tmp_path):
    _, port, _ = serving
    text = (owner.folder / "client.toml").read_text()
    [register] = tomllib.loads(text)["tpm"]["pcrs"]["9"]
    (tmp_path / "other.toml").write_text(text.replace(register, "11" * 32))
    request = ["request", f"http://127.0.0.1:{port}/predictions/pry", "-d", "x", "--policy", tmp_path / "other.toml"]
    refused = subprocess.run([*COMMAND, *request], cwd=owner.folder, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "pcr" in refused.stderr.lower()


def test_a_handler_cannot_write_to_the_root_to_disks_or_to_the_kernels_settings(serving):
    _, _, found = serving
    assert {path: word for path, word in found["writes"].items() if word.startswith("done")} == {}
    assert found["writes"]["/written"] in ("Read-only file system", "Permission denied")
    assert not found["remount"].startswith("done")
    [[_, kind, options]] = found["root"]
    assert kind == "squashfs" and "ro" in options.split(",")


def test_a_handler_finds_no_shell_and_no_swap_and_is_not_root(serving):
    _, _, found = serving
    assert found["shells"] == []
    assert found["shell"] == "No such file or directory"
    assert found["programs"] == ["python3", "python3.11"]
    assert found["swap"] == []
    assert found["uid"] == 1000
    assert found["sysctl"] == {
        "kernel/yama/ptrace_scope": "3",
        "kernel/core_pattern": "|/bin/false",
        "kernel/kexec_load_disabled": "1",
        "kernel/modules_disabled": "1",
        "user/max_user_namespaces": "0",
    }


def test_the_kernel_itself_says_that_the_root_refuses_to_be_written(serving):
    guest, _, _ = serving
    assert "writing to it is refused: Read-only file system" in guest.console


def flipped(image: Path, offset: int, folder: Path) -> Path:
    """`image` with one bit of its root turned, everything else linked."""
    for each in image.iterdir():
        if each.name != "root.img":
            (folder / each.name).symlink_to(each.resolve())
    shutil.copy(image / "root.img", folder / "root.img")
    with (folder / "root.img").open("r+b") as file:
        file.seek(offset)
        [octet] = file.read(1)
        file.seek(offset)
        file.write(bytes([octet ^ 1]))
    return folder


def test_a_boot_from_a_root_with_one_bit_flipped_ends_before_anything_of_it_runs(configured, owner, tmp_path):
    """In the block of the filesystem's first bytes, which the kernel reads in any case, but not in those bytes."""
    (tmp_path / "image").mkdir()
    image = flipped(configured, 2048, tmp_path / "image")
    guest = Guest(image, owner.models, tmp_path / "console.log", PORT=str(free_port()))
    try:
        guest.wait()
    finally:
        guest.close()
    assert "data block 0 is corrupted" in guest.console
    assert "panic" in guest.console
    assert "the root is verified" not in guest.console


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.999])
def test_a_flipped_bit_anywhere_does_not_fit_the_root_hash(configured, tmp_path, place):
    """The whole disk, its hash tree at the end included, by the tool that made the tree."""
    image = flipped(configured, int((configured / "root.img").stat().st_size * place), tmp_path)
    words = dict(word.partition("=")[::2] for word in (configured / "cmdline").read_text().split())
    blocks = int(words["rootblocks"])
    verify = ["veritysetup", "verify", "--no-superblock", "--salt=-", "--hash=sha256", "--data-block-size=4096"]
    verify += ["--hash-block-size=4096", f"--data-blocks={blocks}", f"--hash-offset={blocks * 4096}"]
    for root, fits in ((configured, True), (image, False)):
        disk = str(root / "root.img")
        done = subprocess.run([*verify, disk, disk, words["roothash"]], capture_output=True, text=True)
        assert (done.returncode == 0) is fits, done.stderr


def test_another_configuration_is_another_measurement_of_the_same_root(configured, owner, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("vmlinuz", "initrd.base", "cmdline", "root.img"):
        (other / name).symlink_to((configured / name).resolve())
    changed = tmp_path / "config"
    shutil.copytree(owner.config, changed)
    (changed / "config.properties").write_text("inference_address=http://0.0.0.0:9090\n")
    recipe("configure", other, changed)
    one, two = (json.loads(digests(each, "--json").stdout) for each in (configured, other))
    assert one["root_hash"] == two["root_hash"]
    for register in ("tpm_pcr9_sha256", "tdx_rtmr2"):
        assert one[register] != two[register]
    assert one["sha256"]["initrd"] != two["sha256"]["initrd"]


def test_a_second_build_from_the_same_packages_has_the_same_digests(built, tmp_path):
    recipe("build", tmp_path / "again")
    for name in ("cmdline", "initrd.base", "vmlinuz", "debs.sha256", "wheels.sha256"):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes(), name
