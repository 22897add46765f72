"""A whole sealed server in which everything that must stay secret is a canary, and the hunt for all of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from doubles.hunted import handlers_own, is_inside, known_secrets, said_in_the_clear
from doubles.models import plain_archive
from leaks.hunt import Found, Hunt, canary, may_watch
from strongroom.archive.signature import AuthorKey
from strongroom.archive.unseal import SealedArchive
from strongroom.attest.simulated import SimulatedAttester
from strongroom.broker.admin import AdminKey
from strongroom.client.adapter import SealedAdapter
from strongroom.client.grpc_inference import SealedInference
from strongroom.demo.stage import Stage, run
from strongroom.errors import StrongroomError
from strongroom.keeper.release import ReleaseClient

HANDLER = Path(__file__).parent / "loud_handler.py"
FIXED = "canary-of-the-model-3f1c8a52d09b"
WORDS = {
    "worker": "model_service_worker",
    "keeper": "keeper --config",
    "java": "serve.ModelServer",
    "launcher": "strongroom.cli launch",
}


class Ground:
    """The stage with `names` served by the loud handler, and a hunt that began before anything was made."""

    def __init__(self, *names: str, lease_s: int = 0) -> None:
        self.names = names or ("digits",)
        self.counted: Counter[str] = Counter()  # for docs/reliability.md; what was answered wrongly is an assertion
        self.stage = Stage.make()
        self.canaries: dict[str, str | bytes] = {
            name: canary(name) for name in ("model", "weights", "request", "piece")
        }
        self.canaries["answer"] = hashlib.sha256(self.canaries["request"].encode()).hexdigest()
        # This process is the client and the author, so its own files are spared, and it writes none elsewhere.
        self.hunt = Hunt(self.canaries, spared=(self.stage.owner,))
        stage = self.stage
        stage.make_author()
        stage.start_broker()
        (stage.host / "model_store").mkdir()
        flags = ["--author", "author.key", "--broker", stage.broker_url, "--admin-key", "broker/admin.key"]
        flags += ["--lease", str(lease_s)] if lease_s else []
        for name in self.names:
            files = {
                "loud_handler.py": HANDLER.read_text().replace(FIXED, self.canaries["model"]).encode(),
                "weights.bin": self.canaries["weights"].encode() * 1000,
            }
            plain = plain_archive(stage.owner / f"{name}.mar", files, name=name, handler="loud_handler.py")
            run("seal", str(plain), *flags, "-o", str(self.archive(name)), folder=stage.owner)
        self._learn_keys()

    def archive(self, name: str = "") -> Path:
        return self.stage.host / "model_store" / f"{name or self.names[0]}.mar"

    def _learn_keys(self) -> None:
        """Keys are canaries too: the author's, the administrator's, the first model's (asked for as a keeper does)."""
        with SealedArchive.open(self.archive()) as archive:
            client = ReleaseClient(self.stage.broker_url, attester=SimulatedAttester())
            released = client.fetch(archive.core.resource, archive.core.digest)
        self.hunt.add("the model key", released.key.reveal())
        author = AuthorKey.load(self.stage.owner / "author.key")
        self.hunt.add("the author's key", author._seeds[:32])
        administrator: Ed25519PrivateKey = AdminKey.load(self.stage.owner / "broker" / "admin.key").private
        self.hunt.add("the administrator's key", administrator.private_bytes_raw())

    def serve(self, properties: str = "", *, workers: int = 2, **server) -> None:
        """Start the server and wait until every model has its workers."""
        models = tuple(f"{name}={name}.mar" for name in self.names)
        self.stage.start_server(models=models, properties=f"metrics_mode=prometheus\n{properties}", **server)
        for name in self.names:
            self.stage.wait_until_ready(workers, model=name)

    # -- processes --------------------------------------------------------------------------

    def tree(self, kind: str = "") -> list[psutil.Process]:
        """The launcher's processes of one kind, or all."""
        everybody = [psutil.Process(self.stage.launcher.pid)]
        everybody += everybody[0].children(recursive=True)
        found = []
        for each in everybody:
            with contextlib.suppress(psutil.Error):
                if not kind or WORDS[kind] in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def kill(self, kind: str) -> int:
        """SIGKILL for the first of that kind."""
        pid = self.tree(kind)[0].pid
        os.kill(pid, signal.SIGKILL)
        self.counted["killed"] += 1
        return pid

    # -- talking ------------------------------------------------------------------------------

    def session(self) -> requests.Session:
        session = requests.Session()
        session.mount(self.stage.url, SealedAdapter(policy=self.stage.client_policy()))
        return session

    def url(self, name: str = "") -> str:
        return f"{self.stage.url}/predictions/{name or self.names[0]}"

    def status(self, session: requests.Session, name: str = "", timeout: float = 30) -> int:
        """The status of one honest request; 200 only with the right answer, 0 where there was none at all."""
        status = self._asked(session, name, timeout)
        self.counted["answered rightly" if status == 200 else "refused" if status else "not answered"] += 1
        return status

    def _asked(self, session: requests.Session, name: str, timeout: float) -> int:
        try:
            answer = session.post(self.url(name), json={"answer": self.canaries["request"]}, timeout=timeout)
        except StrongroomError as error:
            return getattr(error, "status", 503) or 503
        except requests.RequestException:
            return 0
        if answer.status_code == 200:
            assert answer.json() == {"answered": self.canaries["answer"]}
        return answer.status_code

    def until_answered(self, session: requests.Session, name: str = "", seconds: float = 120) -> None:
        deadline, last = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            if (last := self.status(session, name)) == 200:
                return
            time.sleep(0.2)
        raise AssertionError(f"no answer after {seconds} s, the last status was {last}\n{self.stage.log_tail()}")

    def talk(self) -> None:
        """Requests of every kind, in one answer and in pieces, over HTTP and gRPC, until one of each was answered;
        then what the server says in the clear."""
        session, deadline = self.session(), time.monotonic() + 120
        wanted = [{"answer": self.canaries["request"]}, {"say": self.canaries["request"]}]
        wanted += [{"raise": self.canaries["request"]}, {"exit": self.canaries["request"]}]
        while wanted and time.monotonic() < deadline:
            body = wanted[0]
            try:
                answer = session.post(self.url(), json=body, timeout=30)
            except (StrongroomError, requests.RequestException):
                if "exit" not in body:
                    time.sleep(0.3)
                    continue
            else:
                if answer.status_code not in (200, 500):
                    continue
                if "answer" in body:
                    assert answer.json() == {"answered": self.canaries["answer"]}
            wanted.pop(0)
        assert not wanted
        for talk in (lambda: self.talk_in_pieces(session), self.talk_by_grpc):
            patiently(talk, deadline)
        self.until_answered(session)
        secrets = known_secrets(self.stage, self.names[0])
        assert secrets
        self.hunt.look_for(secrets)
        self.listen_to_the_clear()

    def talk_in_pieces(self, session: requests.Session) -> None:
        """An answer that comes in pieces, one of them a canary."""
        wish = {"stream": self.canaries["piece"], "answer": self.canaries["request"]}
        with session.post(self.url(), json=wish, stream=True, timeout=30) as answer:
            said = b"".join(answer.iter_content(None)).decode()
        assert said.startswith(str(self.canaries["piece"])), said
        assert str(self.canaries["answer"]) in said

    def talk_by_grpc(self) -> None:
        """Both calls of TorchServe's other front, by our own client."""
        name, headers = f"127.0.0.1:{self.stage.grpc}", {"content-type": "application/json"}
        wish = {"stream": self.canaries["piece"], "answer": self.canaries["request"]}
        with grpc.insecure_channel(name) as channel:
            sealed = SealedInference(channel, self.stage.client_policy(), name=name)
            whole = sealed.predict(self.names[0], json.dumps(wish).encode(), headers=headers, timeout=30).content
            pieces = b"".join(
                sealed.stream(self.names[0], json.dumps(wish).encode(), headers=headers, timeout=30).pieces
            )
        for said in (whole, pieces):
            assert said.decode().startswith(str(self.canaries["piece"]))
            assert str(self.canaries["answer"]) in said.decode()

    def listen_to_the_clear(self) -> None:
        """What anybody can ask the server for; a canary that a client put there itself would be its own leak."""
        for where, octets in said_in_the_clear(self.stage, list(self.names)):
            self.hunt.octets(octets, where)

    # -- hunting ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Everything on the wire and, where the kernel lets us, every file while it is written."""
        with self.hunt.listening(), self.hunt.watching() if may_watch() else contextlib.nullcontext():
            yield

    def search(self) -> list[Found]:
        """What was found, but for what the handler itself left in the temporary folder that it was given."""
        self.hunt.octets(self.stage.relay.seen, "the relay")
        outsiders = [each.pid for kind in ("launcher", "java") for each in self.tree(kind)]
        self.hunt.everywhere(inside=is_inside, outsiders=outsiders)
        return [each for each in self.hunt.found if not handlers_own(each.where)]

    def unsearched(self) -> set[str]:
        """Files that such a server surely wrote and that no search looked at: there should be none."""
        searched = {each.name for each in self.hunt.paths}
        logs = {"launch.log", "access_log.log", "model_log.log", "model_metrics.log", "ts_log.log", "ts_metrics.log"}
        private = {"config.properties", "MANIFEST.json", "header", "model-config.yaml"}
        return (logs | private | {self.archive(name).name for name in self.names}) - searched

    def close(self) -> None:
        """Stop everything, and print what was counted."""
        self.stage.close()
        print(json.dumps(dict(sorted(self.counted.items()))))


def patiently(talk: Callable[[], None], deadline: float) -> None:
    """Until it succeeds: who was just killed may be on its way back."""
    while True:
        try:
            return talk()
        except (StrongroomError, requests.RequestException, grpc.RpcError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
