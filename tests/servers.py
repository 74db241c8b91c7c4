"""What a group keeps its results on: MLflow's server with passwords, before PostgreSQL. Both are real and end with the test."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import needs

PATIENCE = 120.0
ADMIN, PASSWORD = "admin", "correct-horse-battery"
"""The server's first user. MLflow asks for twelve characters."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition: Callable[[], object], why: Callable[[], str] = str) -> None:
    """Wait for something to hold; `why` says what was seen if it never does."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.05)


@contextmanager
def postgres() -> Iterator[str]:
    """A new PostgreSQL on 127.0.0.1 with an empty database; its URI. It refuses to work for root: then Debian's user starts it."""
    programs, port = Path(needs.path("postgres") or "").resolve().parent, free_port()
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: it holds a socket
    if user:
        shutil.chown(folder, "postgres", "postgres")
    secret = folder / "password"
    secret.write_text("only-for-this-test")
    secret.chmod(0o644)
    data, log = folder / "data", folder / "log"
    options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **user}
    made = subprocess.run(
        [programs / "initdb", "--pgdata", data, "--username", "owner", "--pwfile", secret, "--auth", "scram-sha-256", "--no-sync",
         "--encoding", "UTF8", "--locale", "C"],
        check=False, **options,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    command = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-c", "fsync=off"]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, start_new_session=True, **user)
    try:
        ready = [programs / "pg_isready", "--quiet", "-h", "127.0.0.1", "-p", str(port)]
        until(lambda: subprocess.run(ready, check=False).returncode == 0, log.read_text)
        yield f"postgresql+psycopg2://owner:only-for-this-test@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # its "fast shutdown"
        process.wait(PATIENCE)
        shutil.rmtree(folder)


@dataclass
class Server:
    """`mlflow server` with basic authentication. It may be killed and started again."""

    folder: Path
    backend: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = self.folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = sqlite:///{self.folder}/users.db\nauth_cache_ttl_seconds = 60\n"
        )
        command = [
            sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1", "--port", str(self.port),
            "--backend-store-uri", self.backend, "--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN, "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-this-test",
        }  # fmt: skip
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, self.log.read_text)

    def add_user(self, name: str, password: str) -> None:
        admin = base64.b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json.dumps({"username": name, "password": password}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {admin}"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    def kill(self) -> None:
        """As `kill -9` of all its processes: nothing is finished, nothing is said to anybody."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True


@contextmanager
def server(folder: Path, backend: str) -> Iterator[Server]:
    """The server, answering; killed when this is left."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Server(folder, backend, free_port())
    try:
        made.start()
        yield made
    finally:
        made.kill()
