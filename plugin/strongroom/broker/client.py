"""An administrator's side of the broker: `BrokerAdmin` over `requests` (docs/release.md section 14).

The same calls for resources and policies work against a Trustee that knows the administrator's key.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import EllipsisType
from typing import Any

import requests
from urllib3.exceptions import LocationParseError

from strongroom.broker.admin import AdminKey, key_id_of
from strongroom.broker.document import ModelKeyDocument, check_name
from strongroom.broker.epochs import public_key_of
from strongroom.broker.protocol import BASE_PATH, ErrorInformation, Resource
from strongroom.encoding import b64url, parse_json, unb64url
from strongroom.errors import BrokerUnreachable, ConfigurationInvalid, MalformedInput, ReleaseError
from strongroom.keys import ArchiveDigest, AuthorId, ModelKey

_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.~-]+")
"""A segment of a path that no URL library normalises away, escapes or takes for anything else."""

_LEASE = re.compile(r"[0-9a-f]{32}")


class BrokerAdmin:
    """Administrative requests to one broker. `ca` is a PEM file that its certificate must chain to."""

    def __init__(
        self, url: str, admin_key: Path, *, role: str = "admin", ca: Path | None = None, timeout: float = 30.0
    ) -> None:
        self._url = url.rstrip("/") + BASE_PATH
        self._key = AdminKey.load(admin_key)
        self._role = role
        self._timeout = timeout
        self._session = requests.Session()
        # A proxy or .netrc of the environment has no say in who gets an administrator's token.
        self._session.trust_env = False
        self._session.verify = str(ca) if ca is not None else True

    def call(self, method: str, path: str, *, body: bytes | None = None, json: Any = None, query: Any = None) -> bytes:
        """One request; the answer's body. Raises `BrokerUnreachable`, `ReleaseError`.

        Raises `MalformedInput` for a path that could lead elsewhere than it reads, since every request is signed, and
        `ConfigurationInvalid` where the broker's own address is none.
        """
        if not all(map(_SEGMENT.fullmatch, path.split("/"))):
            raise MalformedInput(f"{path[:80]!r} is no path at a broker", hint="check the name that you gave")
        headers = {"Authorization": f"Bearer {self._key.token(self._role)}"}
        try:
            answer = self._session.request(
                method, f"{self._url}/{path}", data=body, json=json, params=query, headers=headers,
                timeout=self._timeout, allow_redirects=False,
            )  # fmt: skip
        except (requests.RequestException, LocationParseError) as error:
            if isinstance(error, ValueError):  # so are those about the form of a URL
                raise ConfigurationInvalid(
                    f"{self._url!r} is no broker's address", hint="write http://HOST:PORT or https://HOST:PORT"
                ) from error
            raise BrokerUnreachable(
                f"no answer from the broker at {self._url}: {type(error).__name__}",
                hint="is it running, and does its certificate chain to the CA you named?",
            ) from error
        if answer.status_code != 200:
            raise _refused(answer.status_code, answer.content)
        return answer.content

    def get(self, path: str, query: Any = None) -> Any:
        """A GET whose answer is JSON."""
        return parse_json(self.call("GET", path, query=query), where="broker's answer", limit=1 << 26)

    # -- keys ---------------------------------------------------------------------

    def put_resource(self, name: Resource, octets: bytes) -> None:
        """Store a resource."""
        self.call("POST", f"resource/{name}", body=octets)

    def delete_resource(self, name: Resource) -> None:
        """Forget a resource."""
        self.call("DELETE", f"resource/{name}")

    def resources(self) -> Any:
        """Names and facts of everything stored."""
        return self.get("strongroom/admin/resources")

    # -- policies -----------------------------------------------------------------

    def set_release_policy(self, rego: str) -> None:
        """Replace the Rego release policy."""
        self.call("POST", "resource-policy", json={"policy": b64url(rego.encode())})

    def release_policy(self) -> str | None:
        """The Rego text in force."""
        text: str | None = self.get("resource-policy")["policy"]
        return text

    def set_appraisal_policy(self, toml: str) -> None:
        """Replace the TOML appraisal policy."""
        fields = {"type": "toml", "policy_id": "default", "policy": b64url(toml.encode())}
        self.call("POST", "attestation-policy", json=fields)

    def appraisal_policy(self) -> str | None:
        """The TOML text in force."""
        text: str | None = self.get("attestation-policy")["policy"]
        return text

    # -- taking back ----------------------------------------------------------------

    def revoke(self, kind: str, value: str, *, reason: str = "") -> None:
        """Release no more keys for this archive, lineage, author, measurement or keeper."""
        fields = {"kind": kind, "value": value, "reason": reason}
        self.call("POST", "strongroom/admin/revocations", json=fields)

    def unrevoke(self, kind: str, value: str) -> None:
        """Take a revocation back."""
        self.call("DELETE", "strongroom/admin/revocations", query={"kind": kind, "value": value})

    def revocations(self) -> Any:
        """Every revocation."""
        return self.get("strongroom/admin/revocations")

    def raise_minimum_version(self, lineage: str, version: int) -> int:
        """Release no version of ``tenant/lineage`` below this; returns the minimum in force."""
        fields = {"lineage": lineage, "version": version}
        answer = self.call("POST", "strongroom/admin/minimum-version", json=fields)
        return int(parse_json(answer, where="broker's answer")["version"])

    def set_limit(
        self, lineage: str, *, keepers: int | EllipsisType | None = ..., lease_s: int | EllipsisType | None = ...
    ) -> Any:
        """How many keepers may hold keys of ``tenant/lineage``, and for how long at most; what is in force then.

        None takes a limit away, and one that is not given stays as it is.
        """
        limits = {"keepers": keepers, "lease_s": lease_s}
        fields = {"lineage": lineage} | {name: value for name, value in limits.items() if value is not ...}
        return parse_json(self.call("POST", "strongroom/admin/limit", json=fields), where="broker's answer")

    def leases(self, *, all: bool = False) -> Any:
        """Live leases, or all of them."""
        return self.get("strongroom/admin/leases", {"all": "1"} if all else None)

    def end_lease(self, lease: str) -> None:
        """Forget the lease of a keeper that is gone; raises `MalformedInput` for what is no id of a lease."""
        if not _LEASE.fullmatch(lease):
            raise MalformedInput(
                f"{lease[:40]!r} is no lease: an id is 32 hexadecimal digits",
                hint="`strongroom release list` shows them",
            )
        self.call("DELETE", f"strongroom/admin/leases/{lease}")

    def status(self) -> Any:
        """What the broker says of itself."""
        return self.get("strongroom/admin/status")

    def public_key(self) -> bytes | None:
        """The broker's own key (DER SubjectPublicKeyInfo), which signs epoch seeds; None for a stock Trustee.

        It is held against the broker that the administrator's key was made for, so nobody on the way can put
        another in its place. Raises `ReleaseError` where it is another's.
        """
        if not self._key.broker:
            return None
        octets = unb64url(str(self.status().get("broker_key")), where="broker's answer")
        if key_id_of(public_key_of(octets)) != self._key.broker:
            raise ReleaseError(
                f"the broker at {self._url} has not the key of broker {self._key.broker}",
                hint="another broker answers here, or admin.key is for another one",
            )
        return octets

    def audit_entries(self, first: int, end: int) -> list[bytes]:
        """The audit entries from `first` up to, not including, `end`. Raises `ReleaseError` where some are missing."""
        entries: list[bytes] = []
        while first + len(entries) < end:
            part = self.get("strongroom/admin/audit/entries", {"first": str(first + len(entries))})
            if not isinstance(part, list) or not part:
                raise ReleaseError(f"the broker gave {len(entries)} audit entries of {end - first}")
            entries += [str(each).encode() for each in part]
        return entries[: end - first]

    def checkpoint(self) -> str:
        """The signed checkpoint of the audit log."""
        return self.call("GET", "strongroom/admin/audit/checkpoint").decode("utf-8")


def _refused(status: int, body: bytes) -> ReleaseError:
    try:
        information = ErrorInformation.parse(body)
    except MalformedInput:
        shown = body[:80].decode("utf-8", "replace")
        return BrokerUnreachable(f"HTTP {status}, which is no answer of a key broker: {shown!r}")
    hints = {
        "AdminAuthAccess": "is this the right admin.key, for this broker, with a role that may do it?",
        "PluginInternalError": "check the three segments of the name; the broker's log has the reason",
        "ParsePolicyError": "strongroom policy test shows what is wrong with it",
    }
    said = f"{information.name}: {information.detail}"
    if information.detail.startswith("Plugin internal error: "):
        return ReleaseError(f"the broker refused: {said}", hint="write the value in the form that it asks for")
    return ReleaseError(f"the broker refused: {said}", hint=hints.get(information.name, "the broker's log says why"))


def register_model_key(
    url: str,
    admin_key: Path,
    resource: tuple[str, str, str],
    archive: ArchiveDigest,
    key: ModelKey,
    *,
    version: int,
    author: AuthorId | None = None,
    owner: str | None = None,
    lease_s: int | None = None,
    ca: Path | None = None,
) -> None:
    """Store the key of a sealed archive at a broker, under its administrator's signature.

    `resource` is (tenant, lineage, ``<version>-<archive digest>``); `version`, `author` and `owner` are those of the
    signed header, for the broker's policies; `lease_s` the seconds for which a keeper may hold it. Raises
    `MalformedInput` where the name is not the archive's, `BrokerUnreachable`, `ReleaseError`.
    """
    document = ModelKeyDocument(archive, key, version=version, author=author, owner=owner, lease_s=lease_s)
    name = Resource(*resource)
    check_name(name, document)
    BrokerAdmin(url, admin_key, ca=ca).put_resource(name, document.serialise())
