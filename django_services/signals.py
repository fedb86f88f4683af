"""Django signals that a project may receive, with their payloads."""

from __future__ import annotations

from django.dispatch import Signal

#: One operation at OpenAI ended, well or not, with all of its attempts. A stream
#: ends when its last piece was read, or when it was closed. Sent in the caller's thread.
#: Payload: ``alias``, ``endpoint`` (path below the base URL), ``model``,
#: ``outcome`` (``"ok"`` or the error's class name), ``status``, ``request_id``,
#: ``attempts`` (HTTP requests that were sent; 0 if it was refused in this process or
#: answered by the cache), ``elapsed_ms``; ``input_tokens``, ``cached_tokens`` (of the
#: input) and ``output_tokens``, None if unknown, ``is_estimated`` if they were not told
#: by the service; ``cost`` (US dollars, a Decimal; None if unknown), ``is_embedded``
#: (answered by the embedded model); ``tenant``, ``user`` and ``feature``, "" if not said.
openai_call_finished = Signal()

#: A batch of sources was brought in step. Payload: ``index`` (its label),
#: ``embedded`` (texts sent to the model), ``stored`` and ``removed`` (chunks),
#: ``failed`` (sources).
embeddings_synced = Signal()
