"""What a project's own tests need of django_services.

`fake_openai` answers in the network's place, `embed_pending` brings embeddings in step,
`allow_hosts` says which hosts the clients may reach. pytest users have the first as a
fixture and the last as a guard that is on: see `django_services.pytest_plugin`.
"""

from __future__ import annotations

from ..openai_transport.hosts import allow_hosts
from .calls import Call
from .fake import FakeOpenAI
from .installing import fake_openai
from .pending import embed_pending

__all__ = ["Call", "FakeOpenAI", "allow_hosts", "embed_pending", "fake_openai"]
