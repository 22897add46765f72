"""What stands around the launcher before it starts anything: its environment, start-up files, distributions.

Code gets into a Python process without being asked for through variables, through ``.pth`` files and
`sitecustomize`, and through distributions that nobody expected. Each is compared with what the configuration
says, and the launch is refused with the name of what is wrong. A process that was already taken over can lie
here: this finds mistakes and additions to a good image, and only the measured image says that it was good
(docs/threat-model.md).
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.machinery
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from strongroom.encoding import Fields, parse_json
from strongroom.errors import LaunchRefused, MalformedInput
from strongroom.launch.hardening import swaps
from strongroom.launch.variables import check_environment
from strongroom.plugins import distribution_digest

CUSTOMIZERS = ("sitecustomize", "usercustomize")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a configuration's ``[surroundings]`` table expects.

    `startup_files` maps a file's name to its SHA-256 in hex; a file that an installed distribution recorded,
    unchanged, needs no mention. `distributions` is a list as `Installed.write` makes one, or None. `java_home` is
    the Java that runs the server, where it is not the first one found in the system's own folders.
    """

    startup_files: Mapping[str, str]
    distributions: Path | None
    java_home: Path | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed distribution; `digest` is SHA-256 in hex of what its installer recorded."""

    name: str
    version: str
    digest: str

    @staticmethod
    def all() -> tuple[Installed, ...]:
        """Every distribution on the import path, by name."""
        found = (
            Installed(each.name.lower(), each.version, distribution_digest(each).hex())
            for each in metadata.distributions()
            if each.name
        )
        return tuple(sorted(set(found), key=lambda each: (each.name, each.version, each.digest)))

    @staticmethod
    def write(path: Path, installed: Iterable[Installed]) -> None:
        """A list for the configuration: JSON, the exact inverse of `read`."""
        listed = [{"name": each.name, "version": each.version, "digest": each.digest} for each in installed]
        path.write_text(json.dumps(listed, indent=1) + "\n", "utf-8")

    @staticmethod
    def read(path: Path) -> tuple[Installed, ...]:
        """Raises `LaunchRefused`."""
        try:
            listed = parse_json(path.read_bytes(), where=path.name, limit=1 << 24)
            if not isinstance(listed, list):
                raise MalformedInput(f"{path.name} is not a list")
            return tuple(_installed(each, path.name) for each in listed)
        except (OSError, MalformedInput) as error:
            raise LaunchRefused(
                f"the list of expected distributions cannot be read: {error}",
                hint="make it in the image that you trust: strongroom admit --write-expected FILE",
            ) from error


def _installed(value: object, where: str) -> Installed:
    read = Fields(value, where=where)
    installed = Installed(read.text("name"), read.text("version"), read.text("digest", limit=64))
    read.done()
    return installed


def check_surroundings(expected: Expected, *, tee: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Everything below; raises `LaunchRefused`. Gives sentences to print where only a warning is due."""
    check_environment(environment)
    if tee != "simulated":
        check_import_path(sys.path[0] if sys.path else "", safe=bool(sys.flags.safe_path))
    check_startup_files(expected.startup_files)
    if expected.distributions is not None:
        check_distributions(Installed.read(expected.distributions), Installed.all())
        check_records(metadata.distributions())
    found = swaps()
    if not found:
        return []
    said = f"swap is in use ({', '.join(found)}), so opened models may be written to it"
    if tee != "simulated":
        raise LaunchRefused(said, hint="swapoff -a; compressed swap in memory (zram) is accepted")
    return [said]


def check_import_path(first: str, *, safe: bool) -> None:
    """The folder in which the launcher was started is not where its modules are looked for first."""
    if not safe and Path(first or ".").resolve() == Path.cwd():
        raise LaunchRefused(
            "Python looks for modules in the present folder first, and that is the operator's",
            hint="start it as `strongroom launch …`, or with python -P -m strongroom.cli launch …",
        )


def check_startup_files(allowed: Mapping[str, str], folders: Iterable[Path] | None = None) -> None:
    """Every ``.pth`` file and customizer is one that a distribution recorded, or has the digest that is allowed."""
    recorded = _recorded_startup_files()
    for path in _startup_files(_site_folders() if folders is None else folders):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in (recorded.get(path.resolve()), allowed.get(path.name)):
            continue
        raise LaunchRefused(
            f"{path} runs code whenever Python starts, and no installed distribution recorded it as it is",
            hint=f'remove it, or expect it: startup_files = {{ "{path.name}" = "{digest}" }} in [surroundings]',
        )


def _site_folders() -> list[Path]:
    """Where start-up files are looked for. Python's own library is left out: Debian ships a customizer in it, and
    whoever can write there can change any module of the interpreter, which only a measured image can tell.
    """
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    own = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    folders = dict.fromkeys([*site.getsitepackages(), *user, *filter(None, sys.path)])
    return [Path(folder) for folder in folders if Path(folder).resolve() not in own]


def _startup_files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            continue
        yield from sorted(folder.glob("*.pth"))
        for name in CUSTOMIZERS:
            spec = importlib.machinery.PathFinder.find_spec(name, [str(folder)])
            if spec is not None and spec.origin is not None:
                yield Path(spec.origin)


def _recorded_startup_files() -> dict[Path, str]:
    """Path → SHA-256 in hex, of start-up files that distributions recorded."""
    found = {}
    for distribution in metadata.distributions():
        record = distribution.read_text("RECORD") or ""
        # Among the tens of thousands of lines that torch brings only these can matter.
        lines = [line for line in record.splitlines() if ".pth" in line or "customize" in line]
        for name, digest, _ in (row for row in csv.reader(lines) if len(row) == 3):
            file, (kind, _, value) = PurePosixPath(name), digest.partition("=")
            if (file.suffix == ".pth" or file.stem in CUSTOMIZERS) and kind == "sha256":
                found[Path(str(distribution.locate_file(name))).resolve()] = _unpadded(value).hex()
    return found


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check_distributions(expected: Iterable[Installed], found: Iterable[Installed]) -> None:
    """The two sets are the same; raises `LaunchRefused` naming what differs."""
    wanted, there = set(expected), set(found)
    if wanted == there:
        return
    added = ", ".join(f"{each.name} {each.version}" for each in sorted(there - wanted, key=lambda x: x.name)[:5])
    missing = ", ".join(f"{each.name} {each.version}" for each in sorted(wanted - there, key=lambda x: x.name)[:5])
    raise LaunchRefused(
        f"the installed distributions are not the expected ones: found {added or 'nothing'} beside them, "
        f"missed {missing or 'nothing'}",
        hint="install what is expected, or make the list anew: strongroom admit --write-expected FILE",
    )


def check_records(distributions: Iterable[metadata.Distribution]) -> None:
    """Every installed file still has the digest that was recorded; raises `LaunchRefused` for the first that has not.

    Reads everything that is installed: some seconds with torch.
    """
    for distribution in distributions:
        for file in distribution.files or ():
            if file.hash is None or file.hash.mode != "sha256":
                continue
            path = Path(str(distribution.locate_file(file)))
            try:
                with path.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").digest()
            except OSError:
                digest = b""
            if digest != _unpadded(file.hash.value):
                raise LaunchRefused(
                    f"{path} is not the file that {distribution.name} {distribution.version} installed",
                    hint="install it again from where you trust",
                )
