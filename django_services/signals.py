"""Django signals that a project may receive, with their payloads."""

from __future__ import annotations

from django.dispatch import Signal

#: One HTTP call to OpenAI ended, well or not. Sent in the caller's thread.
#: Payload: ``alias``, ``endpoint`` (path below the base URL), ``model``,
#: ``outcome`` (``"ok"`` or the error's class name), ``status``, ``request_id``,
#: ``elapsed_ms``, ``input_tokens`` and ``output_tokens`` (None if unknown).
openai_call_finished = Signal()

#: A batch of sources was brought in step. Payload: ``index`` (its label),
#: ``embedded`` (texts sent to the model), ``stored`` and ``removed`` (chunks),
#: ``failed`` (sources).
embeddings_synced = Signal()
