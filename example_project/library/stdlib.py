"""The standard library's documentation, read from the running interpreter."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: They open a browser or a window, print, exit, or document nothing.
SKIPPED = frozenset(
    {"antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo"}
    | {"distutils", "encodings", "lib2to3", "pydoc_data"}
)
#: Docstrings that Python writes itself and that say nothing.
GENERATED = ("Alias for field number", "Initialize self.", "partial(func, ")


@dataclass(frozen=True, slots=True)
class Documentation:
    """What the standard library says about one of its parts."""

    name: str  # qualified, as one would import it
    kind: str  # "module", "class", "function" or "method"
    module: str
    signature: str  # empty where Python does not know it
    text: str  # the docstring, without indentation


def read() -> list[Documentation]:
    """Return the documentation of every public part that has one, each once."""
    seen: set[int] = set()
    with warnings.catch_warnings():
        # Some of the modules announce their own removal.
        warnings.simplefilter("ignore")
        modules = list(_modules())
        found = [entry for module in modules for entry in _documented(module, seen)]
    return list({entry.name: entry for entry in found}.values())


def _modules() -> Iterator[ModuleType]:
    """Yield the modules, the top level first.

    A part belongs to the first module that shows it: ``threading.Lock`` is not
    to be found under ``multiprocessing.dummy``.
    """
    names = sorted(
        name for name in sys.stdlib_module_names if name not in SKIPPED and name[0] != "_"
    )
    top_level = [module for name in names if (module := _imported(name))]
    yield from top_level
    for module in top_level:
        inside = pkgutil.iter_modules(getattr(module, "__path__", ()), f"{module.__name__}.")
        for name in (found.name for found in inside):
            if not name.rpartition(".")[2].startswith("_") and (submodule := _imported(name)):
                yield submodule


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None  # of another platform, or not built into this Python


def _documented(module: ModuleType, seen: set[int]) -> Iterator[Documentation]:
    name = module.__name__
    if text := _text(module):
        yield Documentation(name, "module", name, "", text)
    for attribute in _public_names(module):
        part = getattr(module, attribute, None)
        if not (inspect.isclass(part) or inspect.isroutine(part)) or id(part) in seen:
            continue
        if not _belongs(part, module):
            continue
        seen.add(id(part))
        qualified = attribute if name == "builtins" else f"{name}.{attribute}"
        kind = "class" if inspect.isclass(part) else "function"
        if text := _text(part):
            yield Documentation(qualified, kind, name, _signature(part), text)
        if kind == "class":
            yield from _methods(part, qualified, name, seen)


def _public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or vars(module)
    return sorted(name for name in names if not name.startswith("_"))


def _belongs(part: Any, module: ModuleType) -> bool:
    """Tell whether a module offers a part, or has only imported it for itself."""
    if hasattr(module, "__all__"):
        return True
    home = getattr(part, "__module__", None) or module.__name__
    return home.lstrip("_") == module.__name__ or home == f"_{module.__name__}"


def _methods(part: type, qualified: str, module: str, seen: set[int]) -> Iterator[Documentation]:
    for name, member in vars(part).items():
        method = getattr(member, "__func__", member)
        if name.startswith("_") or id(method) in seen:
            continue
        if inspect.isroutine(method) and (text := _text(method)):
            seen.add(id(method))
            yield Documentation(f"{qualified}.{name}", "method", module, _signature(method), text)


def _text(part: Any) -> str:
    text = getattr(part, "__doc__", None)
    if not isinstance(text, str) or text.startswith(GENERATED):
        return ""
    return inspect.cleandoc(text).strip()


def _signature(part: Any) -> str:
    try:
        signature = inspect.signature(part)
    except (AttributeError, NameError, TypeError, ValueError):
        return ""  # written in C, or as in curses.textpad: of a part that is not there
    parameters = signature.parameters.values()
    return str(signature.replace(parameters=[_without_surprise(each) for each in parameters]))


def _without_surprise(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return the parameter with a default that is the same in every process.

    Others show an address in memory, or as ``cgi.parse(environ=os.environ)``
    every secret of this machine.
    """
    if parameter.default is parameter.empty or _is_literal(parameter.default):
        return parameter
    return parameter.replace(default=_ELLIPSIS)


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or type(value) in {bool, bytes, complex, float, int, str}


class _Ellipsis:
    def __repr__(self) -> str:
        return "…"


_ELLIPSIS = _Ellipsis()
