"""What a slot's type is called (docs/format.md section 10.1)."""

from __future__ import annotations

from strongroom.archive.slots import Slot

KINDS = {1: "x25519", 2: "xwing", 3: "passphrase", 4: "provider"}


def kind_name(slot: Slot) -> str:
    """For people: the slot's type, and the provider's name for type 4."""
    return KINDS.get(slot.kind, f"type {slot.kind}")
