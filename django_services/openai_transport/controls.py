"""What all clients of an alias share: its breaker, its limits and its budgets.

Made on first use for each process and alias, forgotten by a forked child, and made
anew when a setting changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import conf
from ..lifecycle import Managed
from ..resilience import Breaker
from . import pace
from .budgets import Budgets
from .faults import CIRCUIT_OPEN
from .limits import Limiter

#: Keys of which the state is held at once: a project that passes its users' own keys
#: has many.
_MOST_CIRCUITS = 1_000


@dataclass(frozen=True, slots=True)
class Cause:
    """Why calls are refused for a while: what the service answered last."""

    status: int = 503
    code: str | None = CIRCUIT_OPEN


@dataclass(slots=True)
class Circuit:
    """The breaker of one key, and what opened it."""

    breaker: Breaker
    cause: Cause = field(default_factory=Cause)


class Controls:
    """The state that governs the calls of one alias.

    Args:
        alias: The service's name in ``DJANGO_SERVICES["OPENAI"]``.
        settings: Its settings.
    """

    def __init__(self, alias: str, settings: conf.OpenAISettings) -> None:
        self.limiter = Limiter(alias)
        self.budgets = Budgets(alias)
        self._settings = settings
        self._circuits: dict[int, Circuit] = {}

    def circuit(self, credentials: int) -> Circuit:
        """Return the breaker for calls with a key; a bad key shuts out no other one."""
        found = self._circuits.get(credentials)
        if found is None:
            if len(self._circuits) >= _MOST_CIRCUITS:
                self._circuits.clear()
            breaker = Breaker(self._settings.breaker_failures, self._settings.breaker_pause)
            found = self._circuits.setdefault(credentials, Circuit(breaker))
        return found


def controls_of(alias: str) -> Controls:
    """Return the process's controls of an alias."""
    return _controls.get(alias)


def forget() -> None:
    """Forget the state of every alias, as for a test."""
    _controls.close()


def _build(alias: str) -> Controls:
    return Controls(alias, conf.openai_section(alias))


_controls = Managed(
    "OpenAI controls",
    _build,
    lambda controls: pace.forget(),  # noqa: ARG005
    settings=frozenset({"DJANGO_SERVICES", "CACHES"}),
)
