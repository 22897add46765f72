"""Obtain a model key from a Confidential Containers guest's own data hub, over its loopback.

In such a guest one GET replaces the whole handshake (docs/release.md section 16). It is off unless the
configuration names it: **every process of the pod can read the same key there**, so handlers are as trusted
as the keeper. There are no leases, and the hub's policy is the key owner's only say.
"""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

from strongroom.broker.document import ModelKeyDocument, check_name
from strongroom.broker.protocol import Resource
from strongroom.collateral.answers import ask, session
from strongroom.errors import BrokerUnreachable, ConfigurationInvalid, MalformedInput, ReleaseError, ResourceMissing
from strongroom.hookspecs import Grant
from strongroom.keeper.release import Released
from strongroom.keys import ArchiveDigest

DEFAULT_URL = "http://127.0.0.1:8006"
ANSWER_LIMIT = 65536


class CdhClient:
    """`fetch` as `ReleaseClient` has it, from a data hub on the loopback. `timeout` in seconds."""

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = 60.0) -> None:
        host = urlsplit(url).hostname or ""
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = host == "localhost"
        if not loopback:
            raise ConfigurationInvalid(
                f"{url} is not on the loopback: a data hub hands out keys in the clear",
                hint="from elsewhere a key comes through a broker: [broker] url",
            )
        self._url, self._timeout = url.rstrip("/"), timeout

    def release(self, archive: ArchiveDigest, resource: tuple[str, str, str]) -> Grant:
        """`fetch` as a key provider (`strongroom.hookspecs.KeyProvider`); it grants no lease."""
        released = self.fetch(resource, archive)
        return Grant(released.key, asked_at=released.asked_at)

    def fetch(self, resource: tuple[str, str, str], archive: ArchiveDigest) -> Released:
        """The key of `archive`; raises `BrokerUnreachable`, `ResourceMissing`, `ReleaseError`."""
        name = Resource(*resource)
        asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            with session() as direct:
                direct.trust_env = False
                url = f"{self._url}/cdh/resource/{name}"
                answer = ask(direct, "GET", url, timeout=self._timeout, limit=ANSWER_LIMIT)
        except OSError as error:
            raise BrokerUnreachable(
                f"no data hub answers at {self._url}: {type(error).__name__}",
                hint="is this a Confidential Containers guest with its api-server-rest enabled?",
            ) from error
        if answer.status != 200:
            raise ResourceMissing(
                f"the data hub did not give {name}: HTTP {answer.status}",
                hint="the hub says no more; the key broker's log has the reason",
            )
        try:
            document = ModelKeyDocument.parse(answer.body)
            check_name(name, document)
        except MalformedInput as error:
            raise ReleaseError(f"what the data hub gives for {name} is no model key: {error}") from error
        if document.archive != archive:
            raise ReleaseError(f"the data hub's key under {name} is for archive {document.archive}")
        return Released(document.archive, document.key, asked_at, version=document.version, author=document.author)
