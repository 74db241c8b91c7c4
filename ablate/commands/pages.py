"""What is looked at in a browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ablate.errors import UserError

from . import Offline, app, say


@app.command()
def site(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="A new folder, or that of an older site, which is replaced."
        ),
    ],
    offline: Offline = False,
) -> None:
    """Build a static leaderboard of everything in the registry.

    A page over all suites, one for each suite and scale with its report, one for each cell. Any web server can hold it.
    """
    from registry.site import build

    made = build(output, offline=offline, progress=say)
    for reason in made.left_out:
        say(f"without a page: {reason}")
    print(made.folder / "index.html")


@app.command()
def ui(
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535, help="Where it listens.")] = 5000,
) -> None:
    """Open MLflow's own interface on the registry, for this machine alone.

    Where the registry is on a tracking server, that serves the interface itself: its address is printed.
    """
    from registry.home import home
    from registry.store import Store

    store = Store.open(home(), create=False)
    if store.uri.startswith(("http://", "https://")):
        print(store.name)
        return
    if store.missing:
        raise UserError("no results yet: run `ablate run quickstart`")
    _free(port)
    say(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)")
    sys.stdout.flush()
    # one worker: four take half a gigabyte each, and answer more slowly; the address by the environment, for it may hold a password
    os.environ |= {
        "MLFLOW_BACKEND_STORE_URI": store.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    artifacts = (home() / "artifacts").as_uri()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--default-artifact-root", artifacts]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options])


def _free(port: int) -> None:
    """That nothing else listens there: MLflow would say so in a page of traceback."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({(error.strerror or 'taken').lower()}): choose another with --port"
            ) from None
