"""Strongroom's own key providers, offered through the same hook as anybody's (docs/release.md sections 16 and 17).

`kbs` asks a key broker, which judges evidence and grants leases; `cdh` asks a Confidential Containers guest's data
hub; `file` and `pkcs11` read files (`keyfiles`). Which of them a keeper uses, and what it makes of the answers, is
`sources`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strongroom.hookspecs import Asker, KeyProvider, KeyProviderOffer, hookimpl
from strongroom.keeper.keyfiles import FileProvider, Pkcs11Provider, Settings

if TYPE_CHECKING:
    from strongroom.keeper.cdh import CdhClient


def _kbs(settings: Mapping[str, Any], asker: Asker) -> KeyProvider:
    """A key broker: settings ``url`` and perhaps ``ca``, from the ``[broker]`` table."""
    from strongroom.broker.statement import KeeperStatement
    from strongroom.keeper.release import ReleaseClient

    read = Settings("kbs", settings, asker.folder)
    url, ca = read.text("url"), read.text("ca", default="")
    read.done()
    return ReleaseClient(
        url,
        attester=asker.attester,
        ca=asker.folder / ca if ca else None,
        additional=asker.devices,
        statement=KeeperStatement.parse(dict(asker.statement)),
        attempts=1,
        init_data=asker.init_data,
    )


def _kbs_missing(settings: Mapping[str, Any], base: Path) -> str:
    """Whether the broker answers at all."""
    import requests

    url, ca = str(settings["url"]), str(settings.get("ca", ""))
    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(
                f"{url}/healthz", timeout=10, verify=str(base / ca) if ca else True, allow_redirects=False
            )
    except (requests.RequestException, OSError) as error:
        return f"no broker answers at {url}: {type(error).__name__}"
    return f"the broker at {url} says that it cannot release anything" if answer.status_code == 503 else ""


def _cdh(settings: Mapping[str, Any], asker: Asker) -> KeyProvider:
    """A guest's data hub: perhaps a setting ``url``."""
    return cdh_configured(settings, asker.folder)


def cdh_configured(settings: Mapping[str, Any], base: Path) -> CdhClient:
    """The data hub's client; raises `ConfigurationInvalid` for one that is not on the loopback."""
    from strongroom.keeper.cdh import DEFAULT_URL, CdhClient

    read = Settings("cdh", settings, base)
    url = read.text("url", default=DEFAULT_URL)
    read.done()
    return CdhClient(url)


def _cdh_missing(settings: Mapping[str, Any], base: Path) -> str:
    """Whether the hub answers at all."""
    import requests

    from strongroom.keeper.cdh import DEFAULT_URL

    cdh_configured(settings, base)
    url = str(settings.get("url", DEFAULT_URL))
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.get(f"{url}/info", timeout=10, allow_redirects=False)
    except (requests.RequestException, OSError) as error:
        return f"no data hub answers at {url}: {type(error).__name__}"
    return ""


@hookimpl
def strongroom_key_providers() -> Sequence[KeyProviderOffer]:
    """The four providers of this package."""
    return [
        KeyProviderOffer("kbs", _kbs, _kbs_missing),
        KeyProviderOffer("file", FileProvider.make, FileProvider.missing),
        KeyProviderOffer("pkcs11", Pkcs11Provider.make, Pkcs11Provider.missing),
        KeyProviderOffer("cdh", _cdh, _cdh_missing),
    ]
