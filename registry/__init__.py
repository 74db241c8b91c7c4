"""The result registry: what was run, on what, and what came out. It needs neither ablate nor torch.

Every name is imported when it is first used, so `import registry` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._views import schema as schema
    from .analysis import Effects as Effects
    from .analysis import across_scales as across_scales
    from .analysis import analyse as analyse
    from .analysis import effects as effects
    from .leaderboard import Leaderboard as Leaderboard
    from .leaderboard import query as query
    from .record import DesignRecord as DesignRecord
    from .record import MarkRecord as MarkRecord
    from .record import TrialRecord as TrialRecord
    from .spool import Spool as Spool
    from .store import Store as Store

_HOMES = {
    "Effects": "analysis",
    "across_scales": "analysis",
    "effects": "analysis",
    "analyse": "analysis",
    "Leaderboard": "leaderboard",
    "query": "leaderboard",
    "schema": "_views",
    "TrialRecord": "record",
    "DesignRecord": "record",
    "MarkRecord": "record",
    "Store": "store",
    "Spool": "spool",
}
__all__ = [
    "DesignRecord",
    "Effects",
    "Leaderboard",
    "MarkRecord",
    "Spool",
    "Store",
    "TrialRecord",
    "across_scales",
    "analyse",
    "effects",
    "query",
    "schema",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
