"""The migration operation that brings pgvector into a PostgreSQL database."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.operations import CreateExtension


class CreateVectorExtension(CreateExtension):
    """``CREATE EXTENSION vector`` on PostgreSQL, nothing elsewhere; never taken back.

    Other tables of the database may hold vectors too.
    """

    def __init__(self) -> None:
        super().__init__("vector")

    def database_backwards(self, *_: Any) -> None:
        """Leave the extension to those who may still use it."""
