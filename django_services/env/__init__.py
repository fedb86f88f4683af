"""The environment, typed: variables and URLs become Django's settings.

``Env`` is loaded on first use: a project that does not read its environment
with it does not pay for django-environ.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .environment import Env
    from .values import Secret
    from .variables import VARIABLES, Variable, variables_table

__all__ = ["VARIABLES", "Env", "Secret", "Variable", "variables_table"]

_MODULES = {
    "Env": "environment",
    "Secret": "values",
    "VARIABLES": "variables",
    "Variable": "variables",
    "variables_table": "variables",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
