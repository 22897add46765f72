"""The measured image's scripts and arithmetic, as far as they need neither root nor a build.

Building and booting is tests/launch/test_measured_image.py's, which takes its time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from doubles.firmware import ovmf
from doubles.models import Author
from strongroom.archive.signature import AuthorKey
from strongroom.attest.launch_inputs import stub_register
from strongroom.demo.stage import COMMAND, run
from strongroom.evidence.policy import Policy
from strongroom.launch.config import Configuration
from strongroom.plugins import Plugins

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "guides" / "measured-image.md"
RECIPE = PAGE.with_suffix("")
COMMAND_LINE = f"console=ttyS0 roothash={'ab' * 32} rootblocks=7 root=/dev/vda models=/dev/vdb"
FIRST_BOOT = {
    "ak_trust": "pinned",
    "pinned_aks": ["000b" + "11" * 32],
    "pcrs": {"0": ["00" * 32], "4": ["44" * 32]},
}


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """What `build` leaves, in miniature, and `configure` run over the example."""
    folder = tmp_path_factory.mktemp("recipe")
    out = folder / "image"
    out.mkdir()
    (out / "vmlinuz").write_bytes(b"a kernel")
    (out / "initrd.base").write_bytes(b"drivers and init")
    (out / "cmdline").write_text(COMMAND_LINE + "\n")
    assert configure(out, example(folder)).returncode == 0
    return out


@pytest.fixture
def image(configured, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(configured, tmp_path / "image")
    return tmp_path / "image"


def example(folder: Path, **files: str) -> Path:
    config = folder / "config"
    shutil.copytree(RECIPE / "example", config)
    AuthorKey.generate("ed25519").public.save(config / "author.pub")
    for name, text in files.items():
        (config / name.replace("_", ".")).write_text(text)
    return config


def configure(out: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RECIPE / "configure"), str(out), str(config)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )


def digests(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPE / "digests.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def console(folder: Path, values: dict, tee: str = "tpm") -> Path:
    """What a guest says at its first boot, carriage returns and noise included."""
    line = json.dumps({"name": "measured-image", "tee": tee, "values": values})
    path = folder / "console.log"
    path.write_bytes(f"[  1.0] noise \ufffd\r\nreference values follow\r\n{line}\r\ntpm: 5 values\r\n".encode())
    return path


def scripts() -> list[Path]:
    return sorted(each for each in RECIPE.iterdir() if each.is_file() and each.suffix != ".py")


def test_the_recipe_is_there():
    assert [each.name for each in scripts()] == ["boot", "build", "configure", "dhcp", "init"]


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_a_script_can_be_read_by_its_shell_and_stops_at_the_first_failure(script):
    first = script.read_text().splitlines()[0]
    shell = {"#!/usr/bin/env bash": "bash", "#!/bin/busybox sh": "sh"}[first]
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("set -euo pipefail" if shell == "bash" else "set -eu") in script.read_text()
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("name", ["pid1.py", "digests.py"])
def test_the_python_of_the_recipe_compiles(name):
    compile((RECIPE / name).read_text(), name, "exec")


def test_the_first_program_needs_pythons_own_library_alone():
    """It is started with -I -S, before anything that pip installed can be imported."""
    imported = re.findall(r"^(?:from|import) (\w+)", (RECIPE / "pid1.py").read_text(), re.MULTILINE)
    assert set(imported) <= sys.stdlib_module_names


def test_the_page_names_scripts_and_variables_that_exist():
    page = PAGE.read_text()
    for name in re.findall(r"\./(\w+) /", page) + re.findall(r"(\w+\.py) /", page):
        assert (RECIPE / name).is_file(), name
    everything = "".join(each.read_text() for each in scripts())
    for variable in re.findall(r"`([A-Z][A-Z_]{2,})`", page):
        if variable not in ("HOST_DATA", "MRCONFIGID"):
            assert f': "${{{variable}:=' in everything, variable
    for option in re.findall(r"`?(--[a-z][a-z-]+)", page):
        assert option in (RECIPE / "digests.py").read_text() or option in ("--broker", "--admin-key"), option


def test_the_scripts_stop_the_reader_who_forgot_an_argument():
    for name in ("build", "configure", "boot"):
        done = subprocess.run([str(RECIPE / name)], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"usage: {name} ")


def test_tools_that_are_asked_for_are_in_the_list_of_packages():
    packages = [word for name in ("apt.txt", "apt-long.txt") for word in (ROOT / ".ci" / name).read_text().split()]
    homes = {"mksquashfs": "squashfs-tools", "veritysetup": "cryptsetup-bin", "depmod": "kmod", "modprobe": "kmod"}
    [tools] = re.findall(r"^for tool in (.*); do$", (RECIPE / "build").read_text(), re.MULTILINE)
    for tool in tools.split():
        assert homes.get(tool, tool) in packages


def test_the_example_is_a_configuration(tmp_path):
    loaded = Configuration.load(example(tmp_path) / "strongroom.toml")
    assert loaded.tee == "tpm"


def test_the_kernels_register_is_computed_as_a_guest_quoted_it():
    """PCR 9 of swtpm in a guest of QEMU 7.2, OVMF 2022.11 and Linux 6.1.192; the initrd is known by its digest."""
    initrd = bytes.fromhex("b16eda215e65a84885b9f74288be7eef7475fa39b88982b7fa189f740f156350")
    quoted = "c50a93f20cad56a26441ca94429c081527325e62537da42e5c2711421dd7bd99"
    assert stub_register("console=ttyS0 quiet roothash=abcd", initrd).hex() == quoted


def test_hashes_for_the_snp_table_are_of_kernel_initrd_and_the_terminated_command_line(image):
    told = json.loads(digests(image, "--json").stdout)
    initrd = (image / "initrd").read_bytes()
    assert initrd.startswith(b"drivers and init\x1f\x8b")
    for name, octets in {"kernel": b"a kernel", "initrd": initrd, "cmdline": COMMAND_LINE.encode() + b"\0"}.items():
        assert told["sha256"][name] == hashlib.sha256(octets).hexdigest()
        assert told["sha384"][name] == hashlib.sha384(octets).hexdigest()
    assert (told["root_hash"], told["root_blocks"]) == ("ab" * 32, 7)
    assert told["configuration"] == hashlib.sha256((image / "config" / "strongroom.toml").read_bytes()).hexdigest()


def test_the_same_configuration_makes_the_same_initrd_and_another_one_another(image, tmp_path):
    first = (image / "initrd").read_bytes()
    config = tmp_path / "again"
    shutil.copytree(image / "config", config, copy_function=shutil.copyfile)
    assert configure(image, config).returncode == 0
    assert (image / "initrd").read_bytes() == first
    (config / "torchserve.flags").write_text("--models other=other.mar\n")
    assert configure(image, config).returncode == 0
    assert (image / "initrd").read_bytes() != first


def test_the_configuration_is_unpacked_where_the_first_process_looks(image, tmp_path):
    import gzip

    octets = (image / "initrd").read_bytes().removeprefix(b"drivers and init")
    subprocess.run(["cpio", "-id", "--quiet"], input=gzip.decompress(octets), cwd=tmp_path, check=True)
    assert "/config/*" in (RECIPE / "init").read_text()
    assert (tmp_path / "config" / "strongroom.toml").read_bytes() == (image / "config/strongroom.toml").read_bytes()


@pytest.mark.parametrize("spoil", ["key", "folder", "link", "without"])
def test_a_configuration_that_would_not_be_what_it_seems_is_refused(image, tmp_path, spoil):
    config = example(tmp_path)
    if spoil == "key":
        Author.make(config, name="spare")
    elif spoil == "folder":
        (config / "more").mkdir()
    elif spoil == "link":
        (config / "link").symlink_to("/etc/hostname")
    else:
        (config / "config.properties").unlink()
    done = configure(image, config)
    assert done.returncode == 1
    assert done.stderr.startswith("configure: ")


def test_what_is_printed_is_a_policy_that_a_broker_puts_in_force(image, tmp_path):
    policy = Policy.parse((image / "policy.toml").read_text(), Plugins.load([]).verifiers())
    assert policy.name == "measured-image"
    run("broker", "init", "broker", folder=tmp_path)
    serve = [*COMMAND, "broker", "serve", "broker", "--listen", "127.0.0.1:0", "--rego", "measured", "--json"]
    process = subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        command = ["policy", "set", str(image / "policy.toml"), "--broker", url, "--admin-key", "broker/admin.key"]
        done = subprocess.run([*COMMAND, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "in force as the appraisal policy" in done.stdout
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_without_a_first_boot_the_policy_says_what_is_not_bound_yet(image):
    told = digests(image)
    assert "Not bound yet" in told.stdout
    values = tomllib.loads(told.stdout)["tpm"]
    assert set(values["pcrs"]) == {"9"}
    assert set(values["launch"]) == {"configuration"}


def test_a_first_boot_adds_what_only_firmware_and_tpm_know(image, tmp_path):
    computed = json.loads(digests(image, "--json").stdout)["tpm_pcr9_sha256"]
    values = FIRST_BOOT | {"pcrs": FIRST_BOOT["pcrs"] | {"9": [computed]}}
    told = digests(image, "--first-boot", console(tmp_path, values))
    assert told.returncode == 0, told.stderr
    policy = tomllib.loads(told.stdout)["tpm"]
    assert policy["pcrs"] == {"0": ["00" * 32], "4": ["44" * 32], "9": [computed]}
    assert policy["pinned_aks"] == FIRST_BOOT["pinned_aks"]


@pytest.mark.parametrize(
    ("values", "tee"),
    [
        (FIRST_BOOT | {"pcrs": {"9": ["99" * 32]}}, "tpm"),
        (FIRST_BOOT, "snp"),
        ({"measurements": ["11" * 48]}, "tdx"),
    ],
)
def test_a_first_boot_of_something_else_is_believed_in_nothing(image, tmp_path, values, tee):
    refused = digests(image, "--first-boot", console(tmp_path, values, tee))
    assert refused.returncode == 1
    assert refused.stdout == ""


def test_a_console_without_reference_values_is_refused(image, tmp_path):
    (tmp_path / "empty.log").write_text("nothing\n")
    refused = digests(image, "--first-boot", tmp_path / "empty.log")
    assert refused.returncode == 1
    assert "hint: boot" in refused.stderr


def test_a_tee_that_only_a_first_boot_can_tell_gets_no_policy_before_it(image, tmp_path):
    text = (RECIPE / "example" / "strongroom.toml").read_text().replace('"tpm"', '"tdx"')
    assert configure(image, example(tmp_path, strongroom_toml=text)).returncode == 0
    told = digests(image)
    assert "No policy" in told.stdout
    assert tomllib.loads(told.stdout) == {}
    values = {"measurements": ["11" * 48], "rtmr1": ["22" * 48]}
    policy = digests(image, "--first-boot", console(tmp_path, values, "tdx"))
    assert tomllib.loads(policy.stdout)["tdx"] == values


def test_the_snp_measurement_is_asked_of_kernel_initrd_and_command_line_and_stands_in_the_policy(image, tmp_path):
    (tmp_path / "OVMF.fd").write_bytes(ovmf())
    text = (RECIPE / "example" / "strongroom.toml").read_text().replace('"tpm"', '"snp"')
    assert configure(image, example(tmp_path, strongroom_toml=text)).returncode == 0
    options = ("--ovmf", tmp_path / "OVMF.fd", "--vcpus", 4, "--guest-features", "0x21")
    told = digests(image, *options)
    launch = ["--vcpus", "4", "--vcpu-type", "EPYC-v4", "--guest-features", "0x21", "--ovmf", str(tmp_path / "OVMF.fd")]
    launch += ["--kernel", str(image / "vmlinuz"), "--initrd", str(image / "initrd"), "--append", COMMAND_LINE]
    command = [sys.executable, "-c", "from sevsnpmeasure.cli import main; raise SystemExit(main())", "--mode", "snp"]
    expected = subprocess.run(
        [*command, *launch], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    assert tomllib.loads(told.stdout)["snp"] == {"measurements": [expected]}
    booted = console(tmp_path, {"measurements": ["11" * 48]}, "snp")
    refused = digests(image, *options, "--first-boot", booted)
    assert refused.returncode == 1 and "the measurement of the first boot" in refused.stderr
