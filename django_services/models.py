"""Gathers the packages' models, since Django looks for them here."""

from .batches.models import BatchJob, BatchLine
from .embeddings.documents import Document
from .embeddings.models import Change, ChunkChange, Failure, Lease, Space
from .ledger.models import Usage

__all__ = [
    "BatchJob",
    "BatchLine",
    "Change",
    "ChunkChange",
    "Document",
    "Failure",
    "Lease",
    "Space",
    "Usage",
]
