"""The two readable members, in the one form they may have (docs/format.md section 8).

A model server's frontend reads them before any code of ours runs. So they are functions of a few
values: what is parsed is written anew and compared, and nothing else can hide in them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.encoding import labelled, parse_json
from strongroom.errors import ArchiveMalformed, MalformedInput

MANIFEST = "MAR-INF/MANIFEST.json"
CONFIG = "model-config.yaml"
HANDLER = "strongroom_handlers.sealed"
CLEAR_LABEL = "strongroom archive v1 clear"
CLEAR_LIMIT = 1 << 16

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
VERSION = re.compile(r"[A-Za-z0-9._+-]{1,64}\Z")

TRUTHS = frozenset({"asyncCommunication", "continuousBatching", "sequenceBatching", "useJobTicket"})
NUMBERS = frozenset(
    {
        "batchSize", "clientTimeoutInMills", "jobQueueSize", "maxBatchDelay", "maxNumSequence", "maxRetryTimeoutInSec",
        "maxSequenceJobQueueSize", "maxWorkers", "minWorkers", "responseTimeout", "sequenceMaxIdleMSec",
        "sequenceTimeoutMSec", "startupTimeout",
    }
)  # fmt: skip
TIMEOUTS = ("responseTimeout", "startupTimeout")
DEFAULT_TIMEOUT = 120
DEVICES = frozenset({"cpu", "gpu", "neuron"})
NUMBER_LIMIT = 2**31 - 1

Setting = bool | int | str | tuple[int, ...]


def check_setting(key: str, value: object) -> Setting:
    """One frontend setting, typed; raises `ArchiveMalformed` for a key or value that is not allowed."""
    if key in TRUTHS and isinstance(value, bool):
        return value
    if key in NUMBERS and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_LIMIT:
        return value
    if key == "deviceType" and isinstance(value, str) and value in DEVICES:
        return value
    if key == "deviceIds" and isinstance(value, list | tuple) and 1 <= len(value) <= 64:
        numbers = tuple(each for each in value if isinstance(each, int) and not isinstance(each, bool))
        if len(numbers) == len(value) and all(0 <= each <= NUMBER_LIMIT for each in numbers):
            return numbers
    raise ArchiveMalformed(f"{CONFIG}: {key[:64]!r} cannot be {str(value)[:64]!r} in a sealed archive")


@dataclass(frozen=True, slots=True)
class ClearMembers:
    """What a sealed archive shows to everybody: the model's name and version, the frontend's settings."""

    name: str
    version: str
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ArchiveMalformed(f"model name {self.name[:80]!r}: letters, digits and ._- only, at most 64")
        if not VERSION.match(self.version):
            raise ArchiveMalformed(f"model version {self.version[:80]!r}: letters, digits and ._+- only, at most 64")
        settings = {key: check_setting(key, value) for key, value in self.settings.items()}
        for timeout in TIMEOUTS:
            settings.setdefault(timeout, DEFAULT_TIMEOUT)
        object.__setattr__(self, "settings", dict(sorted(settings.items())))

    @property
    def manifest(self) -> bytes:
        """The octets of ``MAR-INF/MANIFEST.json``."""
        fields = {
            "archiverVersion": "1",
            "createdOn": "sealed",
            "model": {
                "configFile": CONFIG,
                "handler": HANDLER,
                "modelName": self.name,
                "modelVersion": self.version,
            },
            "runtime": "python",
        }
        return json.dumps(fields, indent=2).encode("ascii") + b"\n"

    @property
    def config(self) -> bytes:
        """The octets of ``model-config.yaml``."""
        return "".join(f"{key}: {_written(value)}\n" for key, value in self.settings.items()).encode("ascii")

    @property
    def files(self) -> dict[str, bytes]:
        """Both members by their paths, in the order of the format."""
        return {MANIFEST: self.manifest, CONFIG: self.config}

    @property
    def root(self) -> bytes:
        """The clear root (section 8.3)."""
        parts = [part for name, octets in self.files.items() for part in (name.encode("ascii"), octets)]
        return hashlib.sha256(labelled(CLEAR_LABEL, *parts)).digest()

    @classmethod
    def parse(cls, manifest: bytes, config: bytes) -> ClearMembers:
        """From the octets of both members; raises `ArchiveMalformed` unless they are exactly canonical."""
        try:
            model = parse_json(manifest, where=MANIFEST, limit=CLEAR_LIMIT)["model"]
            name, version = model["modelName"], model["modelVersion"]
            settings = dict(_parsed(line) for line in config.decode("ascii").splitlines())
        except (MalformedInput, KeyError, TypeError, ValueError) as error:
            raise ArchiveMalformed(f"{MANIFEST} or {CONFIG} is not that of a sealed archive") from error
        if not isinstance(name, str) or not isinstance(version, str):
            raise ArchiveMalformed(f"{MANIFEST}: the model's name or version is no text")
        members = cls(name, version, settings)
        if members.manifest != manifest or members.config != config:
            raise ArchiveMalformed(f"{MANIFEST} or {CONFIG} is not in its canonical form")
        return members


def _written(value: Setting) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value)


def _parsed(line: str) -> tuple[str, Setting]:
    key, separator, text = line.partition(": ")
    if not separator or len(text) > 1024:
        raise ValueError("no setting")
    if text in {"true", "false"}:
        return key, text == "true"
    if re.fullmatch(r"[0-9]{1,10}", text):
        return key, int(text)
    if text.startswith("[") and text.endswith("]"):
        return key, tuple(int(each) for each in text[1:-1].split(", "))
    return key, text
