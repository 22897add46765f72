"""Run a broker: until a signal ends it, or inside a test or the demo as a context manager.

with running(directory, policy=Path("appraisal.toml")) as url:
    …
"""

from __future__ import annotations

import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from strongroom.broker import epochs, leases, tiles
from strongroom.broker.audit import AT_ONCE
from strongroom.broker.certificate import days_left
from strongroom.broker.directory import occupied, open_broker
from strongroom.broker.heads import PunctualProtocol
from strongroom.broker.http import application
from strongroom.broker.pace import Pace
from strongroom.broker.rego import ReleasePolicy, policy_text
from strongroom.broker.release import Broker
from strongroom.errors import ConfigurationInvalid, StrongroomError
from strongroom.evidence.policy import Policy

log = logging.getLogger("strongroom.broker")

CONNECTION_LIMIT = 1024
PUBLISH_SECONDS = 60.0
SWEEP_ROUNDS = 60
RENEWAL_DAYS = 30
"""A certificate that ends sooner is warned of at the start."""


class _Server(uvicorn.Server):
    """uvicorn's server, for which a signal is a request to end and not an end of its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end `run` in order; uvicorn would raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ConfigurationInvalid(f"{listen!r} is not HOST:PORT", hint="127.0.0.1:0 takes any free port")
    return host.strip("[]"), int(port)


def _bound(listen: str) -> socket.socket:
    host, port = _address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigurationInvalid(f"cannot listen on {listen}: {error.strerror}") from error
    return bound


def set_policies(broker: Broker, policy: Path | None, rego: Path | str | None) -> None:
    """Put the given policies in force: an appraisal file, and a Rego file or the name of a template."""
    if policy is not None:
        text = policy_text(policy) if policy.is_file() else None
        if text is None:
            raise ConfigurationInvalid(f"there is no appraisal policy at {policy}")
        if text != broker.store.policy("appraisal"):
            broker.set_appraisal_policy(Policy.load(policy, broker.plugins.verifiers()), text, by="serve")
    if rego is not None:
        path = Path(rego)
        offered = broker.plugins.policies()
        release = (
            ReleasePolicy.parse(policy_text(path)) if path.is_file() else ReleasePolicy.template(str(rego), offered)
        )
        if release.text != broker.store.policy("release"):
            broker.set_release_policy(release, by="serve")


def _server(broker: Broker, directory: Path, pace: Pace | None) -> tuple[uvicorn.Server, str]:
    certificate, key = directory / "tls.crt", directory / "tls.key"
    tls: dict[str, Any] = {}
    if certificate.is_file():
        left = days_left(certificate.read_bytes(), datetime.now(UTC))
        if left < RENEWAL_DAYS:
            log.warning(
                "the certificate %s ends in %d days: replace it and %s, and start again", certificate, left, key
            )
        tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    config = uvicorn.Config(
        application(broker, pace=pace),
        http=PunctualProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=CONNECTION_LIMIT,
        timeout_keep_alive=15,
        forwarded_allow_ips="127.0.0.1",  # a proxy on this machine may say for whom it asks; no variable says who else
        h11_max_incomplete_event_size=1 << 18,
        **tls,
    )
    return _Server(config), "https" if tls else "http"


def _raise_descriptor_limit() -> None:
    """Every connection takes a descriptor, and so do the store and the log: as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTION_LIMIT
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


class Publisher:
    """Keeps ``audit/`` below the broker's folder up to date: the log as tiles, for whoever copies it away.

    Each round writes what is new since the last; the first reads the whole log. Once an hour it also forgets leases
    that are over for long, and epoch seeds of two days ago.
    """

    def __init__(self, broker: Broker, folder: Path) -> None:
        self._broker = broker
        self._folder = folder
        self._writer: tiles.Writer | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-publisher", daemon=True)

    def publish(self) -> None:
        """Write what is new; a failure is logged, for the log itself stands in the store."""
        audit = self._broker.audit
        writer = self._writer or tiles.Writer(self._folder)
        if self._writer is not None and audit.size == writer.size:
            return
        try:
            note = audit.checkpoint()
            size = int(note.split("\n")[1])
            while writer.size < size:
                writer.append(audit.entries(writer.size, min(AT_ONCE, size - writer.size)))
            writer.publish(note + self._broker.plugins.cosignatures(note))
            self._writer = writer
        except (OSError, StrongroomError) as error:
            self._writer = None  # the next round compares all that stands there
            log.error("the audit log could not be published to %s: %s", self._folder, error)

    def sweep(self) -> None:
        """Forget leases that are over for long and old epoch seeds; a failure is logged, the next hour tries again."""
        store, now = self._broker.store, self._broker.clock()
        try:
            leases.sweep(store, int(now))
            epochs.sweep(store, now)
        except StrongroomError as error:
            log.error("old leases and epoch seeds could not be forgotten: %s", error)

    def _run(self) -> None:
        rounds = 0
        while not self._stopped.wait(PUBLISH_SECONDS):
            self.publish()
            rounds += 1
            if rounds % SWEEP_ROUNDS == 0:
                self.sweep()

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(30)
        self.publish()


def _url(scheme: str, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    directory: Path,
    *,
    listen: str = "127.0.0.1:8080",
    policy: Path | None = None,
    rego: Path | str | None = None,
    passphrase: str | None = None,
    pace: Pace | None = None,
    ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM. `ready` gets the URL once connections are accepted."""
    _raise_descriptor_limit()
    with occupied(directory), closing(open_broker(directory, passphrase=passphrase, **options)) as broker:
        set_policies(broker, policy, rego)
        bound = _bound(listen)
        server, scheme = _server(broker, directory, pace)
        bound.listen(CONNECTION_LIMIT)
        with Publisher(broker, directory / "audit"):
            ready(_url(scheme, bound))
            server.run(sockets=[bound])


@contextmanager
def running(
    directory: Path,
    *,
    listen: str = "127.0.0.1:0",
    policy: Path | None = None,
    rego: Path | str | None = None,
    passphrase: str | None = None,
    pace: Pace | None = None,
    **options: Any,
) -> Iterator[tuple[str, Broker]]:
    """A broker in a thread of this process: its URL and the `Broker` itself. Stops it at the end."""
    with occupied(directory), closing(open_broker(directory, passphrase=passphrase, **options)) as broker:
        set_policies(broker, policy, rego)
        bound = _bound(listen)
        server, scheme = _server(broker, directory, pace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="broker", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 15
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise ConfigurationInvalid("the broker did not start")
                time.sleep(0.01)
            yield _url(scheme, bound), broker
        finally:
            server.should_exit = True
            thread.join(10)
            bound.close()
