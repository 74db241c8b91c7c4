"""The command line: its commands are those of `ablate.commands`; here errors become one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from ablate import __version__
from ablate.commands import INTERRUPTED, WRONG, app, refusal
from ablate.errors import Interrupted, UserError

BROKEN_PIPE = 141
TRAIN_EXTRA = ("torch", "ray", "datasets", "tokenizers")
"""What only training needs."""

for group in ("suites", "runs", "results", "pages", "records", "sharing", "gate"):  # in the order of the help
    importlib.import_module(f"ablate.commands.{group}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. What is the user's to mend is one line on stderr, and 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    # a closed stream is None to Python, and everything that prints fails on it
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    command = get_command(app)
    if "_ABLATE_COMPLETE" in os.environ:  # a shell asks for what may come next
        command.main(given, "ablate")
    try:
        with warnings.catch_warnings(), command.make_context("ablate", given or ["--help"]) as context:
            warnings.showwarning = _warn
            code = command.invoke(context)
        sys.stdout.flush()
        return code or 0
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "ablate"
        return _wrong(f"{error.format_message().rstrip('.')}; see {path} --help")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Interrupted as end:
        print(f"interrupted; {end}", file=sys.stderr, flush=True)
        os._exit(128 + end.number)  # Ray's threads may hold up an orderly end for a minute, and turn it into another
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in (*TRAIN_EXTRA, "duckdb"):
            raise
        extra = "[train]" if name in TRAIN_EXTRA else ""
        return _wrong(f"this needs {name}, which is not installed: pip install 'ablate-bench{extra}'")
    except OSError as error:
        return _wrong(refusal(error))
    except ValueError as error:
        if not isinstance(error, UserError) and not type(error).__module__.startswith("registry."):
            raise
        return _wrong(str(error))


def commands() -> list[str]:
    """The names of all commands, those of a group after its own: `baseline save`."""
    groups = [(f"{group.name} ", group.typer_instance) for group in app.registered_groups if group.typer_instance]
    return [
        prefix + (info.name or info.callback.__name__)
        for prefix, of in [("", app), *groups] for info in of.registered_commands if info.callback
    ]  # fmt: skip


def _wrong(message: str) -> int:
    print(f"error: {_plain(message)}", file=sys.stderr)
    return WRONG


def _plain(message: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(message.split()))


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if category.__module__.partition(".")[0] in ("ablate", "registry"):
        print(f"warning: {_plain(str(message))}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ablate {__version__}")
        raise typer.Exit


@app.callback()
def ablate(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What each choice in an LLM pretraining recipe does to quality, speed and memory, measured."""
