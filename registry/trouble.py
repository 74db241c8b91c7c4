"""What can go wrong with the store, and how it is said: in one line, without a password. Standard library only."""

from __future__ import annotations

import re
import sqlite3
from urllib.parse import urlsplit

LOCKED = "database is locked"


class StoreError(ValueError):
    """The store cannot be used as it is; the message says what to do."""


class StoreUnavailable(StoreError):
    """The store does not answer now; the same may work later."""


class StoreWarning(UserWarning):
    """Something that is kept elsewhere, or left for later, could not be written."""


def explained(error: Exception, name: str, uri: str) -> StoreError:
    """What an error of MLflow's means to the user of the store at `uri`, which is called `name`: the same without password."""
    store, code = f"tracking store {name}", _code(error)
    server, status = urlsplit(uri).scheme in ("http", "https"), _http_status(error)
    if status == 401:
        return StoreUnavailable(
            f"{store} does not accept this user and password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if forbidden(error):
        return StoreError(f"{store} does not allow this: {_said(error)}")
    if status == 404:
        return StoreError(f"{store}: there is no MLflow server at this address; check MLFLOW_TRACKING_URI")
    if (server and "API request to" in str(error)) or code == "TEMPORARILY_UNAVAILABLE":
        if server:
            return StoreUnavailable(f"{store} does not answer ({_why(error)}): start it, or set MLFLOW_TRACKING_URI")
        return StoreUnavailable(
            f"{store} takes nothing ({_why(error)}): is there room, and may its folder be written to?"
        )
    return StoreError(f"{store}: {one_line(error).replace(uri, name)}")


def unreadable(error: sqlite3.DatabaseError, name: str) -> StoreError:
    """What an error of SQLite's means to who reads the database that is called `name`."""
    if LOCKED in str(error):
        return StoreUnavailable(f"tracking store {name}: {LOCKED} by another process; try again when that is done")
    return StoreError(f"tracking store {name} cannot be read: {one_line(error)}")


def _http_status(error: BaseException) -> int | None:
    found = re.search(r"failed with error code (\d+)", str(error))
    return int(found[1]) if found else None


def forbidden(error: Exception) -> bool:
    """Whether the server knows the user, and this is not his to do."""
    return _http_status(error) == 403 or _code(error) == "PERMISSION_DENIED"


def _code(error: Exception) -> str:
    return getattr(error, "error_code", "")


def _said(error: BaseException) -> str:
    """What a server answered, without the address that was asked."""
    return one_line(error).rpartition("Response body: ")[2].strip("'")


def one_line(error: BaseException) -> str:
    """Its message, for a line of output."""
    return " ".join(str(error).split())[:300]


def _why(error: BaseException) -> str:
    """The innermost cause, which names no URL and so no password."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if cause is error:
        return one_line(error).rpartition("failed with ")[2][:120]
    if isinstance(cause, sqlite3.Error):
        return str(cause)
    return getattr(cause, "strerror", None) or type(cause).__name__
