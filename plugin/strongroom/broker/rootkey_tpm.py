"""A root key sealed to this machine's TPM 2.0 (docs/release.md section 13).

The file holds the sealed object; only the TPM that made it opens it, with the passphrase, or only while the
given SHA-256 PCRs have the values of the moment of sealing. Needs the extra ``[tpm]``. The secret crosses the
bus under a salted session: a listener between CPU and TPM does not see it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from strongroom.broker.rootkey import read_private, write_private
from strongroom.encoding import Fields, b64url, parse_json
from strongroom.errors import KeyFileInvalid, MalformedInput

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI, ESYS_TR

T = TypeVar("T")

DEFAULT_TCTI = "device:/dev/tpmrm0"
_FORMAT = "root-key/1"
_PARENT = "ecc256:aes128cfb"
"""The template of the storage parent: a primary key of the owner hierarchy, the same after every reboot."""


class TpmSealed:
    """Seals 32 bytes to the TPM behind `tcti`, under a passphrase or under PCRs of the SHA-256 bank."""

    name = "tpm"

    def __init__(
        self, path: Path, *, tcti: str = DEFAULT_TCTI, passphrase: str | None = None, pcrs: Sequence[int] = ()
    ) -> None:
        if bool(passphrase) == bool(pcrs):
            raise KeyFileInvalid(
                "a root key in a TPM is protected by a passphrase or by PCRs, one of them",
                hint="without either, whoever can use this TPM would have the key",
            )
        if not all(0 <= each < 24 for each in pcrs):
            raise KeyFileInvalid("PCRs are numbered 0 to 23")
        self._path, self._tcti = path, tcti
        self._passphrase, self._pcrs = passphrase or "", tuple(sorted(set(pcrs)))

    @property
    def _selection(self) -> str:
        return f"sha256:{','.join(map(str, self._pcrs))}"

    def create(self) -> bytes:
        """See `RootKeyProvider`. The key comes from the operating system, not from the TPM."""
        import os

        from tpm2_pytss import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

        key = os.urandom(32)
        attributes = "fixedtpm|fixedparent|noda" + ("" if self._pcrs else "|userwithauth")
        with self._open() as (esapi, parent):
            template = TPM2B_PUBLIC.parse("keyedhash", objectAttributes=attributes)
            if self._pcrs:
                template.publicArea.authPolicy = self._policy_digest(esapi)
            sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=self._passphrase, data=key))
            with self._session(esapi, parent, policy=False) as session:
                private, public, *_ = self._asked(
                    lambda: esapi.create(parent, sensitive, template, session1=_password(), session2=session), "seal"
                )
        fields = {
            "strongroom": _FORMAT,
            "tpm_private": b64url(private.marshal()),
            "tpm_public": b64url(public.marshal()),
            "pcrs": list(self._pcrs),
        }
        write_private(self._path, (json.dumps(fields, indent=1) + "\n").encode())
        return key

    def unlock(self) -> bytes:
        """See `RootKeyProvider`."""
        from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC

        try:
            read = Fields(parse_json(read_private(self._path), where=str(self._path)), where=str(self._path))
            if read.text("strongroom") != _FORMAT or not read.has("tpm_private"):
                raise KeyFileInvalid(f"{self._path} is not a root key sealed to a TPM")
            private, _ = TPM2B_PRIVATE.unmarshal(read.blob("tpm_private", limit=4096))
            public, _ = TPM2B_PUBLIC.unmarshal(read.blob("tpm_public", limit=4096))
            sealed_to = tuple(read.value("pcrs"))
            read.done()
        except (MalformedInput, ValueError, RuntimeError) as error:
            raise KeyFileInvalid(f"{self._path}: {error}") from error
        if sealed_to != self._pcrs:
            raise KeyFileInvalid(f"{self._path} is sealed to PCRs {sealed_to}, the settings say {self._pcrs}")
        with self._open() as (esapi, parent):
            sealed = self._asked(lambda: esapi.load(parent, private, public), "load the sealed root key")
            try:
                esapi.tr_set_auth(sealed, self._passphrase)
                with self._session(esapi, parent, policy=bool(self._pcrs)) as session:
                    key = bytes(self._asked(lambda: esapi.unseal(sealed, session1=session), "unseal the root key"))
            finally:
                esapi.flush_context(sealed)
        if len(key) != 32:
            raise KeyFileInvalid(f"{self._path} holds {len(key)} bytes, a root key has 32")
        return key

    @contextmanager
    def _open(self) -> Iterator[tuple[ESAPI, ESYS_TR]]:
        """A connection, and the storage parent in it."""
        try:
            from tpm2_pytss import ESAPI, ESYS_TR, TCTILdr
        except (ImportError, OSError, RuntimeError) as error:
            raise KeyFileInvalid("tpm2-pytss is not installed", hint="pip install 'strongroom[tpm]'") from error
        name, _, configuration = self._tcti.partition(":")
        tcti = self._asked(lambda: TCTILdr(name, configuration or None), f"be opened at {self._tcti}")
        try:
            with ESAPI(tcti) as esapi:
                parent, *_ = self._asked(
                    lambda: esapi.create_primary(None, _PARENT, primary_handle=ESYS_TR.OWNER), "make a storage key"
                )
                try:
                    yield esapi, parent
                finally:
                    esapi.flush_context(parent)
        finally:
            tcti.close()

    @contextmanager
    def _session(self, esapi: ESAPI, parent: ESYS_TR, *, policy: bool) -> Iterator[ESYS_TR]:
        """A session salted to the storage key, under which parameters are encrypted on the bus."""
        from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_SESSION, TPMT_SYM_DEF

        symmetric = TPMT_SYM_DEF.parse("aes128cfb")
        kind = TPM2_SE.POLICY if policy else TPM2_SE.HMAC
        session = self._asked(
            lambda: esapi.start_auth_session(parent, ESYS_TR.NONE, kind, symmetric, TPM2_ALG.SHA256), "start a session"
        )
        try:
            attributes = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT | TPMA_SESSION.DECRYPT
            if policy:
                attributes = TPMA_SESSION.CONTINUESESSION | TPMA_SESSION.ENCRYPT
                self._asked(lambda: esapi.policy_pcr(session, b"", self._selection), "compare its PCRs")
            esapi.trsess_set_attributes(session, attributes)
            yield session
        finally:
            esapi.flush_context(session)

    def _policy_digest(self, esapi: ESAPI) -> Any:
        """The digest of a policy that holds while the PCRs are as they are now."""
        from tpm2_pytss import ESYS_TR, TPM2_ALG, TPM2_SE, TPMT_SYM_DEF

        none = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        trial = self._asked(
            lambda: esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, none, TPM2_ALG.SHA256),
            "start a session",
        )
        try:
            self._asked(lambda: esapi.policy_pcr(trial, b"", self._selection), "read its PCRs")
            return esapi.policy_get_digest(trial)
        finally:
            esapi.flush_context(trial)

    def _asked(self, question: Callable[[], T], doing: str) -> T:
        from tpm2_pytss import TSS2_Exception

        try:
            return question()
        except (TSS2_Exception, RuntimeError, OSError) as error:
            raise KeyFileInvalid(
                f"the TPM could not {doing}: {error}",
                hint="another TPM, a wrong passphrase, or PCRs that changed since the key was sealed?",
            ) from error


def _password() -> ESYS_TR:
    from tpm2_pytss import ESYS_TR

    return ESYS_TR.PASSWORD
