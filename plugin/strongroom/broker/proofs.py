"""Proofs from an exported audit log, as JSON that a third party checks with the broker's verifier key alone."""

from __future__ import annotations

from typing import Any

from strongroom.broker.audit import Checkpoint, NoteKey
from strongroom.broker.merkle import consistency_proof, inclusion_proof, leaf_hash, verify_consistency, verify_inclusion
from strongroom.broker.tiles import Exported
from strongroom.encoding import Fields, b64url, parse_json, unb64url
from strongroom.errors import AuditError, MalformedInput

_INCLUSION = "audit-inclusion/1"
_CONSISTENCY = "audit-consistency/1"


def prove_inclusion(exported: Exported, note: str, index: int) -> dict[str, Any]:
    """That entry `index` stands in the log of the checkpoint `note`. Raises `AuditError`."""
    leaves = [leaf_hash(each) for each in exported.entries]
    proof = inclusion_proof(leaves, index)
    return {
        "strongroom": _INCLUSION,
        "index": index,
        "entry": b64url(exported.entries[index]),
        "proof": [b64url(each) for each in proof],
        "checkpoint": note,
    }


def prove_consistency(exported: Exported, note: str, older: str, key: NoteKey) -> dict[str, Any]:
    """That the log of the checkpoint `older` is the beginning of the log of `note`, any two of one log.

    `exported` has to reach as far as both. Raises `AuditError`, also where the two are not of this log.
    """
    old, new = Checkpoint.verify(older, key), Checkpoint.verify(note, key)
    if max(old.size, new.size) > len(exported.entries):
        raise AuditError(
            f"the exported log has {len(exported.entries)} entries, the checkpoints name {old.size} and {new.size}",
            hint="bring the export up to date: strongroom audit export",
        )
    leaves = [leaf_hash(each) for each in exported.entries[: new.size]]
    proof = consistency_proof(leaves, old.size) if old.size else []
    verify_consistency(old.size, old.root, new.size, new.root, proof)
    return {
        "strongroom": _CONSISTENCY,
        "older": older,
        "proof": [b64url(each) for each in proof],
        "checkpoint": note,
    }


def check_proof(text: str | bytes, key: NoteKey) -> str:
    """What a proof shows, in one sentence; raises `AuditError` where it shows nothing."""
    try:
        read = Fields(parse_json(text, where="proof"), where="proof")
        kind = read.text("strongroom", limit=64)
        checkpoint = Checkpoint.verify(read.text("checkpoint", limit=65536), key)
        steps = [unb64url(each, where="proof") for each in read.texts("proof", limit=128)]
        if any(len(each) != 32 for each in steps):
            raise MalformedInput("proof: a step has 32 bytes")
        if kind == _INCLUSION:
            index, entry = read.number("index"), read.blob("entry")
            read.done()
            verify_inclusion(leaf_hash(entry), index, checkpoint.size, steps, checkpoint.root)
            return f"entry {index} stands in the log of {checkpoint.size} entries: {entry.decode('utf-8', 'replace')}"
        if kind == _CONSISTENCY:
            older = Checkpoint.verify(read.text("older", limit=65536), key)
            read.done()
            verify_consistency(older.size, older.root, checkpoint.size, checkpoint.root, steps)
            return f"the log of {older.size} entries is the beginning of the log of {checkpoint.size}"
    except MalformedInput as error:
        raise AuditError(str(error)) from error
    raise AuditError(f"{kind!r} is no proof of this release")
