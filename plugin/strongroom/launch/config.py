"""The one configuration file (TOML), read in one place (docs/configuration.md).

Everything that carries a security meaning stands in it, and its digest is in the evidence: the
authors whose archives are admitted, the broker, the kind of TEE, the channel's keys, what becomes of
a handler's output. Nothing of it can be overridden by an environment variable.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from strongroom.channel.bundle import MODES
from strongroom.channel.padding import NO_PADDING, NO_STREAM_PADDING, Padding, StreamPadding
from strongroom.encoding import Fields, unhex
from strongroom.errors import ConfigurationInvalid, MalformedInput
from strongroom.keys import ArchiveDigest
from strongroom.launch.surroundings import Expected

DEFAULT_GRACE_S = 300
OUTPUTS = ("drop", "pass")
NETWORKS = DISKS = ("deny", "allow")
ROOMS = ("memory-files", "mount", "folder")
LONGEST_FLEET_OVERLAP = 43200
"""Seconds, half an epoch: seeds of neighbouring epochs are all that a broker gives."""
KEMS = ("x-wing", "x25519", "p-256")
ENVELOPES = ("body", "json", "kserve", "kservev2")


@dataclass(frozen=True, slots=True)
class Admission:
    """Whose archives are served: files of author public keys, and the least version of each lineage.

    `archives` are the only ones that may be served, where given: an author may have signed others.
    """

    authors: tuple[Path, ...]
    minimum_versions: dict[str, int]
    hybrid_signatures: bool
    archives: frozenset[ArchiveDigest] | None = None


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where keys are released: a URL, and the CA that its certificate must chain to.

    `grace` is for how many seconds after a lease's end an unreachable broker changes nothing.
    """

    url: str
    ca: Path | None
    grace: int


BROKER = "kbs"
WITHOUT_LEASES = frozenset({"file", "pkcs11", "cdh"})
"""Strongroom's own key providers that grant no lease."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where model keys come from: one provider by its name, and settings that are its own (docs/configuration.md).

    Relative paths among the settings start at `folder`.
    """

    provider: str = BROKER
    settings: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def leased(self) -> bool:
        """Whether a lease may come with a key; a plugin's provider may grant one."""
        return self.provider not in WITHOUT_LEASES


@dataclass(frozen=True, slots=True)
class Keeper:
    """How long opened models are kept: `idle` seconds after its last worker ended a model is closed; 0 is never."""

    idle: int = 0


@dataclass(frozen=True, slots=True)
class Channel:
    """What clients are offered. Times in seconds. In mode ``fleet`` the epochs of the broker rotate the keys."""

    kems: tuple[str, ...]
    mode: str
    rotation: int
    overlap: int
    date_window: int


@dataclass(frozen=True, slots=True)
class Worker:
    """How workers serve. `gather` is in milliseconds.

    `padding` (of whole answers) and `stream_padding` are policies of `strongroom.channel.padding`.
    `envelopes` maps a model's name to one of `ENVELOPES`, the server's request envelopes, applied to what was
    opened. `rerun` runs the items of a failed batch again, one by one. `grpc_streaming` answers gRPC calls in
    pieces (docs/limitations.md says what a caller can then break). `network` says whether the handler may make
    sockets other than unix sockets, `disk` whether it may write outside of memory. `room` is one of `ROOMS`
    (docs/keeper.md). `user` is the name of the user that the server and its workers run as, empty for the
    launcher's own.
    """

    output: str = "drop"
    network: str = "deny"
    disk: str = "deny"
    room: str = "memory-files"
    user: str = ""
    gather: int = 20
    padding: Padding = NO_PADDING
    stream_padding: StreamPadding = NO_STREAM_PADDING
    envelopes: Mapping[str, str] = field(default_factory=dict)
    rerun: bool = False
    grpc_streaming: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration file; `digest` is SHA-256 of its exact bytes.

    `devices` are TEEs that attest beside `tee` whenever a key is asked for (``nvidia``: every GPU of this guest).
    """

    admission: Admission
    broker: BrokerAddress | None
    keys: Keys
    keeper: Keeper
    tee: str
    devices: tuple[str, ...]
    channel: Channel
    worker: Worker
    surroundings: Expected
    plugins: tuple[str, ...]
    digest: bytes

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that this one names: author keys, the broker's CA, the expected distributions."""
        ca = self.broker.ca if self.broker is not None else None
        return (*self.admission.authors, *filter(None, (ca, self.surroundings.distributions)))

    @property
    def grace(self) -> int:
        """For how many seconds after a lease's end an unreachable source of keys changes nothing."""
        return DEFAULT_GRACE_S if self.broker is None else self.broker.grace

    @classmethod
    def load(cls, path: Path) -> Configuration:
        """Read a file; relative paths in it are relative to its folder, behind all symbolic links.

        Raises `ConfigurationInvalid`, naming the field and the next step.
        """
        try:
            octets = path.read_bytes()
            fields = Fields(tomllib.loads(octets.decode("utf-8")), where=str(path))
            return cls._parse(fields, home(path), sha256(octets).digest())
        except OSError as error:
            raise ConfigurationInvalid(
                f"{path} cannot be read: {error.strerror}", hint="give the file with --config"
            ) from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationInvalid(f"{path} is not TOML: {error}", hint="see docs/configuration.md") from error
        except MalformedInput as error:
            raise ConfigurationInvalid(str(error), hint="docs/configuration.md lists every field") from error

    @classmethod
    def _parse(cls, fields: Fields, folder: Path, digest: bytes) -> Configuration:
        admission = fields.table("admission")
        broker = fields.table("broker") if fields.has("broker") else None
        attestation = fields.table("attestation")
        keeper = fields.table("keeper") if fields.has("keeper") else Fields({}, where=f"{fields.where}: keeper")
        channel = fields.table("channel") if fields.has("channel") else Fields({}, where=f"{fields.where}: channel")
        worker = fields.table("worker") if fields.has("worker") else Fields({}, where=f"{fields.where}: worker")
        around = fields.table("surroundings") if fields.has("surroundings") else Fields({}, where=fields.where)
        configuration = cls(
            admission=_admission(admission, folder),
            broker=_broker(broker, folder) if broker else None,
            keys=_keys(fields.table("keys"), folder) if fields.has("keys") else Keys(folder=folder),
            keeper=Keeper(idle=keeper.number("idle_s", low=0, high=30 * 86400, default=0)),
            tee=attestation.text("tee", limit=64),
            channel=_channel(channel),
            worker=_worker(worker),
            surroundings=_surroundings(around, folder),
            plugins=fields.texts("plugins", limit=64, default=()),
            digest=digest,
            devices=attestation.texts("devices", limit=8, default=()),
        )
        for read in filter(None, (admission, broker, keeper, attestation, channel, worker, around, fields)):
            read.done()
        if len({configuration.tee, *configuration.devices}) <= len(configuration.devices):
            raise MalformedInput(f"{attestation.where}: devices names a TEE twice, or the one that is tee")
        if configuration.worker.output == "pass" and configuration.tee != "simulated":
            raise ConfigurationInvalid(
                f"worker output 'pass' lets plaintext into logs, and the TEE here is {configuration.tee!r}",
                hint="'pass' is for development with tee = \"simulated\"; use 'drop'",
            )
        _check_keys(configuration)
        return configuration


def home(path: Path) -> Path:
    """The folder in which relative paths of a configuration begin: the same one for launcher, keeper and all others."""
    return Path(os.path.realpath(path)).parent


def _check_keys(configuration: Configuration) -> None:
    """One source of keys, and no second one that would be read and not used."""
    keys = configuration.keys
    if keys.provider == BROKER and keys.settings:
        raise ConfigurationInvalid(
            f"keys: {', '.join(sorted(keys.settings))} means nothing to provider {BROKER!r}",
            hint="the key broker's settings stand in [broker]",
        )
    if keys.provider != BROKER and configuration.broker is not None:
        raise ConfigurationInvalid(
            f"keys come from provider {keys.provider!r}, so [broker] would not be used",
            hint='take [broker] out, or say provider = "kbs"',
        )
    if keys.provider != BROKER and configuration.channel.mode == "fleet":
        raise ConfigurationInvalid(
            f"mode fleet needs a key broker's seeds, and keys come from provider {keys.provider!r}",
            hint='[channel] mode = "host", or [keys] provider = "kbs"',
        )
    if keys.provider == "file" and configuration.tee != "simulated":
        raise ConfigurationInvalid(
            f"keys in files are for development, and the TEE here is {configuration.tee!r}",
            hint="let a key broker release them to attested machines: [broker] url",
        )
    if keys.provider not in WITHOUT_LEASES | {BROKER} and not configuration.plugins:
        raise ConfigurationInvalid(
            f"no key provider is called {keys.provider!r}",
            hint=f"there are {', '.join(sorted(WITHOUT_LEASES | {BROKER}))}; a plugin's needs the plugin in `plugins`",
        )


def _admission(read: Fields, folder: Path) -> Admission:
    authors = tuple(folder / name for name in read.texts("authors", limit=256))
    if not authors:
        raise MalformedInput(f"{read.where}: authors is empty, so no archive could ever be admitted")
    versions = read.table("minimum_versions") if read.has("minimum_versions") else Fields({}, where=read.where)
    return Admission(
        authors=authors,
        minimum_versions={name: versions.number(name) for name in versions.left()},
        hybrid_signatures=read.truth("hybrid_signatures", default=False),
        archives=_archives(read),
    )


def _archives(read: Fields) -> frozenset[ArchiveDigest] | None:
    if not read.has("archives"):
        return None
    listed = [unhex(each, where=f"{read.where}: archives") for each in read.texts("archives")]
    if any(len(each) != 32 for each in listed):
        raise MalformedInput(f"{read.where}: archives holds something else than digests of 32 bytes")
    return frozenset(map(ArchiveDigest, listed))


def _broker(read: Fields, folder: Path) -> BrokerAddress:
    url = read.text("url", limit=2048)
    if not url.startswith(("https://", "http://")):
        raise MalformedInput(f"{read.where}: url is {url!r}, which is neither https nor http")
    return BrokerAddress(
        url=url.rstrip("/"),
        ca=folder / read.text("ca") if read.has("ca") else None,
        grace=read.number("grace_s", low=0, high=7 * 86400, default=DEFAULT_GRACE_S),
    )


def _keys(read: Fields, folder: Path) -> Keys:
    provider = read.text("provider", limit=64, default=BROKER)
    return Keys(provider, {name: read.value(name) for name in read.left()}, folder)


def _channel(read: Fields) -> Channel:
    kems = read.texts("kems", default=KEMS[:2])
    if not kems or len(set(kems)) != len(kems) or not set(kems) <= set(KEMS):
        raise MalformedInput(f"{read.where}: kems is not a list out of {', '.join(KEMS)}")
    mode = _one_of(read, "mode", MODES, "host")
    if mode == "fleet" and read.has("rotation_s"):
        raise MalformedInput(f"{read.where}: rotation_s is for mode host; a fleet's keys change with the broker's day")
    longest = LONGEST_FLEET_OVERLAP if mode == "fleet" else 30 * 86400
    return Channel(
        kems=kems,
        mode=mode,
        rotation=read.number("rotation_s", low=60, high=30 * 86400, default=86400),
        overlap=read.number("overlap_s", low=60, high=longest, default=2 * 3600),
        date_window=read.number("date_window_s", low=5, high=3600, default=300),
    )


def _worker(read: Fields) -> Worker:
    envelopes = read.table("envelopes") if read.has("envelopes") else Fields({}, where=read.where)
    return Worker(
        output=_one_of(read, "output", OUTPUTS, "drop"),
        network=_one_of(read, "network", NETWORKS, "deny"),
        disk=_one_of(read, "disk", DISKS, "deny"),
        room=_one_of(read, "room", ROOMS, "memory-files"),
        user=read.text("user", limit=32, default=""),
        gather=read.number("gather_ms", low=0, high=10_000, default=20),
        padding=Padding(read.text("padding", limit=64, default="none")),
        stream_padding=StreamPadding(read.text("stream_padding", limit=64, default="none")),
        envelopes={name: _one_of(envelopes, name, ENVELOPES, "body") for name in envelopes.left()},
        rerun=read.truth("rerun", default=False),
        grpc_streaming=read.truth("grpc_streaming", default=False),
    )


def _surroundings(read: Fields, folder: Path) -> Expected:
    files = read.table("startup_files") if read.has("startup_files") else Fields({}, where=read.where)
    return Expected(
        startup_files={name: files.text(name, limit=64) for name in files.left()},
        distributions=folder / read.text("distributions") if read.has("distributions") else None,
        java_home=folder / read.text("java_home") if read.has("java_home") else None,
    )


def _one_of(read: Fields, name: str, words: tuple[str, ...], default: str) -> str:
    word = read.text(name, limit=64, default=default)
    if word not in words:
        raise MalformedInput(f"{read.where}: {name} is {word!r}, allowed is {' or '.join(words)}")
    return word
