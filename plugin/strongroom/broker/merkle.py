"""A Merkle tree as RFC 6962 section 2.1 hashes it, and its proofs; pure functions of hashes.

Leaves are given as their *leaf hashes*. What an entry is, where it is kept and who signs the root is
`audit`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from strongroom.errors import AuditError

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256 of a zero byte and the entry."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of a one byte and the two children."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees at the right edge of a growing tree: all that appending needs."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        height = 0
        while self._peaks and self._peaks[-1][0] == height:
            leaf = node_hash(self._peaks.pop()[1], leaf)
            height += 1
        self._peaks.append((height, leaf))
        self.size += 1

    def root(self) -> bytes:
        """The tree's root hash so far."""
        if not self._peaks:
            return EMPTY_ROOT
        hashed = self._peaks[-1][1]
        for _, peak in reversed(self._peaks[:-1]):
            hashed = node_hash(peak, hashed)
        return hashed

    def copy(self) -> Frontier:
        """Another frontier of the same tree."""
        twin = Frontier()
        twin.size, twin._peaks = self.size, list(self._peaks)
        return twin


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root hash over all leaves."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index`, lowest first (RFC 6962 section 2.1.1)."""
    if not 0 <= index < len(leaves):
        raise AuditError(f"there is no entry {index} in a log of {len(leaves)}")
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*inclusion_proof(leaves[:middle], index), root_of(leaves[middle:])]
    return [*inclusion_proof(leaves[middle:], index - middle), root_of(leaves[:middle])]


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """That the first `old_size` leaves are a prefix of all (RFC 6962 section 2.1.2)."""
    if not 0 < old_size <= len(leaves):
        raise AuditError(f"a log of {len(leaves)} entries has no checkpoint of {old_size}")
    return _subproof(leaves, old_size, complete=True)


def _subproof(leaves: Sequence[bytes], old_size: int, *, complete: bool) -> list[bytes]:
    if old_size == len(leaves):
        return [] if complete else [root_of(leaves)]
    middle = _split(len(leaves))
    if old_size <= middle:
        return [*_subproof(leaves[:middle], old_size, complete=complete), root_of(leaves[middle:])]
    return [*_subproof(leaves[middle:], old_size - middle, complete=False), root_of(leaves[:middle])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Raise `AuditError` unless the leaf stands at `index` of the tree (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        raise AuditError(f"index {index} is outside a log of {size} entries")
    number, last, hashed = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise AuditError("the inclusion proof is longer than the tree is high")
        if number & 1 or number == last:
            hashed = node_hash(step, hashed)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            hashed = node_hash(hashed, step)
        number, last = number >> 1, last >> 1
    if last != 0 or hashed != root:
        raise AuditError(f"entry {index} is not in the log of this checkpoint")


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raise `AuditError` unless the old tree is a prefix of the new one (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old_size <= new_size:
        raise AuditError(f"the log shrank from {old_size} to {new_size} entries")
    if old_size == 0 or old_size == new_size:
        same = old_root == (EMPTY_ROOT if old_size == 0 else new_root)
        if not same or proof:
            raise AuditError("two checkpoints of one size name different logs")
        return
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        raise AuditError("the consistency proof is empty")
    number, last = old_size - 1, new_size - 1
    while number & 1:
        number, last = number >> 1, last >> 1
    old_hash = new_hash = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise AuditError("the consistency proof is longer than the tree is high")
        if number & 1 or number == last:
            old_hash, new_hash = node_hash(step, old_hash), node_hash(step, new_hash)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            new_hash = node_hash(new_hash, step)
        number, last = number >> 1, last >> 1
    if last != 0 or old_hash != old_root or new_hash != new_root:
        raise AuditError(
            f"the log of {new_size} entries does not begin with the log of {old_size}",
            hint="entries were altered, dropped or reordered since the older checkpoint",
        )
