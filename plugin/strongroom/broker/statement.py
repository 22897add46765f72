"""What a keeper says about itself, as additional evidence named ``strongroom`` (docs/release.md section 10).

It is no evidence of a device. The CPU's evidence commits to it, as it does to every additional evidence,
so it is as true as the software that the CPU measured. Sent only to a broker whose challenge asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strongroom.encoding import Fields, unhex
from strongroom.errors import MalformedInput

WORD = re.compile(r"[a-z][a-z-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeeperStatement:
    """A keeper's name for its life, and what it admitted.

    `keeper` is 16 random bytes of one keeper process; `archives` and `authors` are the digests that it
    admitted; `configuration` and `plugins` are SHA-256 digests, empty where there is none; `hardening` names what
    holds for its process and its workers (docs/keeper.md, hardening).
    """

    keeper: bytes
    archives: tuple[bytes, ...] = ()
    authors: tuple[bytes, ...] = ()
    configuration: bytes = b""
    plugins: bytes = b""
    hardening: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: object) -> KeeperStatement:
        """Strictly; raises `MalformedInput`."""
        read = Fields(value, where="keeper statement")
        read.number("version", low=1, high=1)
        statement = cls(
            keeper=read.hexes("keeper", size=16),
            archives=_digests(read, "archives"),
            authors=_digests(read, "authors"),
            configuration=_digest(read, "configuration"),
            plugins=_digest(read, "plugins"),
            hardening=read.texts("hardening", limit=64, default=()),
        )
        read.done()
        if any(not WORD.fullmatch(each) for each in statement.hardening):
            raise MalformedInput("keeper statement: hardening holds something else than words")
        return statement

    def serialise(self) -> dict[str, Any]:
        """The exact inverse of `parse`."""
        members: Mapping[str, Any] = {
            "archives": [each.hex() for each in self.archives],
            "authors": [each.hex() for each in self.authors],
            "configuration": self.configuration.hex(),
            "plugins": self.plugins.hex(),
            "hardening": list(self.hardening),
        }
        return {"version": 1, "keeper": self.keeper.hex()} | {name: each for name, each in members.items() if each}


def _digests(read: Fields, name: str) -> tuple[bytes, ...]:
    values = tuple(unhex(each, where=f"{read.where}: {name}") for each in read.texts(name, limit=256, default=()))
    if any(len(each) != 32 for each in values):
        raise MalformedInput(f"{read.where}: {name} holds something else than digests of 32 bytes")
    return values


def _digest(read: Fields, name: str) -> bytes:
    return read.hexes(name, size=32) if read.has(name) else b""
