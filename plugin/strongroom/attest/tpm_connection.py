"""A conversation with one TPM 2.0: commands through libtss2, errors turned into ours.

Needs the extra ``[tpm]`` (tpm2-pytss over libtss2). What is asked, and why, is `tpm`'s and `azure`'s business.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strongroom.errors import AttesterUnavailable
from strongroom.evidence.tpm_structures import Quote, TpmSignature

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

DEVICE = Path("/dev/tpmrm0")
TCTI_VARIABLE = "TPM2TOOLS_TCTI"
"""The variable by which tpm2-tools name another TPM. It carries no security meaning: who is led to another
TPM makes evidence that no policy for this machine accepts."""
KINDS_FROM_OUTSIDE = ("device", "mssim", "swtpm", "tabrmd")
"""What the variable may name. libtss2 would also load a library by its path, or run a command (``cmd``)."""
_ATTEMPTS = 3

T = TypeVar("T")


def default_tcti() -> str:
    """The TCTI to use where none is named: that of the environment, else the kernel's resource manager.

    Raises `AttesterUnavailable` where the environment names one that is not of `KINDS_FROM_OUTSIDE`.
    """
    named = os.environ.get(TCTI_VARIABLE) or f"device:{DEVICE}"
    if named.partition(":")[0] not in KINDS_FROM_OUTSIDE:
        raise AttesterUnavailable(
            f"{TCTI_VARIABLE} names {named[:60]!r}, which could bring in a library or a command",
            hint=f"one of {', '.join(KINDS_FROM_OUTSIDE)}, or unset it for {DEVICE}",
        )
    return named


def missing(device: Path = DEVICE) -> str:
    """What this machine lacks for speaking to a TPM, in one sentence; empty when nothing."""
    try:
        import tpm2_pytss  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return "tpm2-pytss is not installed: pip install 'strongroom[tpm]' (it needs libtss2)"
    if os.environ.get(TCTI_VARIABLE):
        try:
            default_tcti()
        except AttesterUnavailable as error:
            return str(error)
        return ""
    if not device.exists():
        return f"there is no {device}: no TPM 2.0, or its kernel module is not loaded"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user: add it to the group tss"
    return ""


class TpmConnection:
    """One open ESAPI context. `lock` is for whoever needs several commands in a row to belong together."""

    def __init__(self, tcti: str) -> None:
        self.lock = threading.RLock()
        self._tcti: Any = None
        self._esapi: ESAPI | None = None
        try:
            from tpm2_pytss import ESAPI, TCTILdr
        except (ImportError, OSError, RuntimeError) as error:
            raise AttesterUnavailable(
                "tpm2-pytss is not installed", hint="pip install 'strongroom[tpm]'; it needs libtss2 of your system"
            ) from error
        name, _, configuration = tcti.partition(":")
        self._tcti = self.asked(lambda: TCTILdr(name, configuration or None), f"open the TPM at {tcti}")
        self._esapi = self.asked(lambda: ESAPI(self._tcti), f"speak to the TPM at {tcti}")

    def close(self) -> None:
        """Let go of the TPM; every later command raises `AttesterUnavailable`."""
        with self.lock:
            if self._esapi is not None:
                self._esapi.close()
                self._esapi = None
            if self._tcti is not None:
                self._tcti.close()
                self._tcti = None

    @property
    def esapi(self) -> ESAPI:
        """For commands; raises `AttesterUnavailable` after `close`."""
        if self._esapi is None:
            raise AttesterUnavailable("the TPM attester is closed")
        return self._esapi

    def asked(self, question: Callable[[], T], doing: str) -> T:
        """The answer to `question`; what libtss2 raises becomes `AttesterUnavailable`, saying what was done."""
        from tpm2_pytss import TSS2_Exception

        try:
            return question()
        except (TSS2_Exception, RuntimeError) as error:
            raise AttesterUnavailable(
                f"the TPM could not {doing}: {error}", hint="strongroom doctor says what is wrong with the TPM here"
            ) from error

    def flush(self, handle: ESYS_TR) -> None:
        """Free a session or a transient object."""
        self.asked(lambda: self.esapi.flush_context(handle), "free a handle")

    def handles(self, first: int) -> set[int]:
        """The TPM handles that exist from `first` on, 64 at most."""
        from tpm2_pytss import TPM2_CAP

        _, found = self.asked(lambda: self.esapi.get_capability(TPM2_CAP.HANDLES, first, 64), "list its handles")
        return {int(handle) for handle in found.data.handles}

    def read_nv(self, index: int) -> bytes:
        """The contents of an NV index, read with the owner's empty password; raises `AttesterUnavailable`."""
        from tpm2_pytss import ESYS_TR
        from tpm2_pytss.utils import NVReadEK

        if index not in self.handles(index):
            raise AttesterUnavailable(
                f"the TPM has no NV index {index:#010x}", hint="is this the kind of guest you think?"
            )
        read = self.asked(lambda: NVReadEK(self.esapi, auth_handle=ESYS_TR.OWNER), "say how it is read")
        return bytes(self.asked(lambda: read(index), f"read NV index {index:#010x}"))

    def read_pcrs(self, bank: str, pcrs: Sequence[int]) -> dict[int, bytes]:
        """The values of these registers; a TPM gives eight at a time."""
        values: dict[int, bytes] = {}
        left = list(pcrs)
        while left:
            selection = f"{bank}:{','.join(map(str, left))}"
            _, selected, digests = self._pcr_read(selection)
            octets = bytes(selected.pcrSelections[0].pcrSelect)
            got = [index for index in left if index // 8 < len(octets) and octets[index // 8] >> index % 8 & 1]
            if not got:
                raise AttesterUnavailable(
                    f"this TPM has no {bank} PCRs {left}", hint="allocate the bank: tpm2_pcrallocate, then reboot"
                )
            values |= {index: bytes(digest) for index, digest in zip(got, digests, strict=False)}
            left = [index for index in left if index not in values]
        return values

    def _pcr_read(self, selection: str) -> Any:
        return self.asked(lambda: self.esapi.pcr_read(selection), "read PCRs")

    def quote(
        self, key: ESYS_TR, nonce: bytes, bank: str, pcrs: Sequence[int]
    ) -> tuple[bytes, bytes, dict[int, bytes]]:
        """(TPMS_ATTEST, TPMT_SIGNATURE, values) by the key's own scheme.

        Tried again where a PCR changed between read and quote, three times.
        """
        from tpm2_pytss import TPM2_ALG, TPMT_SIG_SCHEME

        selection = f"{bank}:{','.join(map(str, pcrs))}"
        scheme = TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL)
        for _ in range(_ATTEMPTS):
            values = self.read_pcrs(bank, pcrs)
            attest, signature = self.asked(lambda: self.esapi.quote(key, selection, nonce, in_scheme=scheme), "quote")
            message, signed = bytes(attest), bytes(signature.marshal())
            if _covers(Quote.parse(message), values, TpmSignature.parse(signed).hash_name):
                return message, signed, values
        raise AttesterUnavailable(
            "the PCRs changed while they were quoted, three times", hint="attest after the boot has settled"
        )


def _covers(quote: Quote, values: Mapping[int, bytes], hash_name: str) -> bool:
    covered = b"".join(values[index] for each in quote.selections for index in each.indices)
    return hashlib.new(hash_name, covered).digest() == quote.pcr_digest
