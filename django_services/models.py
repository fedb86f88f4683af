"""Gathers the packages' models, since Django looks for them here."""

from .embeddings.documents import Document
from .embeddings.models import Change, ChunkChange, Failure, Lease, Space

__all__ = ["Change", "ChunkChange", "Document", "Failure", "Lease", "Space"]
