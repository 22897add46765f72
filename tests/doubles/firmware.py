"""A firmware with nothing in it but the tables that SEV-SNP needs, as OVMF keeps them at its end."""

from __future__ import annotations

import uuid

FOOTER, HASHES, RESET, METADATA = (
    "96b582de-1fb2-45f7-baea-a366c55a082d",
    "7255371f-3a3b-4b04-927b-1da6efa8d454",
    "00f771de-1a7e-4fcb-890e-68c77e2fb44e",
    "dc886566-984a-4798-a75e-5585a7bf67cc",
)
MEMORY, SECRETS, CPUID, KERNEL_HASHES = 1, 2, 3, 0x10
SECTIONS = (
    (0x800000, 0x9000, MEMORY),
    (0x80D000, 0x1000, SECRETS),
    (0x80E000, 0x1000, CPUID),
    (0x810000, 0x1000, KERNEL_HASHES),
)


def entry(guid: str, data: bytes) -> bytes:
    """One entry of the table that OVMF keeps at its end: data, size of the whole, GUID."""
    return data + (len(data) + 18).to_bytes(2, "little") + uuid.UUID(guid).bytes_le


def ovmf(sections=SECTIONS, size: int = 0x10000) -> bytes:
    """A firmware with nothing in it but the tables that SEV-SNP needs (edk2, OvmfPkg/ResetVector)."""
    metadata = b"ASEV" + b"".join(each.to_bytes(4, "little") for each in (16 + 12 * len(sections), 1, len(sections)))
    metadata += b"".join(number.to_bytes(4, "little") for section in sections for number in section)
    start = size // 2
    entries = entry(METADATA, (size - start).to_bytes(4, "little"))
    entries += entry(RESET, (0x80B004).to_bytes(4, "little"))
    entries += entry(HASHES, (0x810400).to_bytes(4, "little") + (0x400).to_bytes(4, "little"))
    table = entries + (len(entries) + 18).to_bytes(2, "little") + uuid.UUID(FOOTER).bytes_le
    image = bytearray(b"\x90" * size)
    image[start : start + len(metadata)] = metadata
    image[size - 32 - len(table) : size - 32] = table
    return bytes(image)
