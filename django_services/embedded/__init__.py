"""The offline embedding model: which it is. `model` reads it, `transport` answers with it.

This module holds constants only, so that asking for the model's name loads
neither numpy nor the SDK.
"""

from __future__ import annotations

#: The name under which the model answers; it stands in ``response.model``.
MODEL = "embedded-wordpiece-256"

#: The longest vector that the model gives; shorter ones are its first axes.
DIMENSIONS = 256
