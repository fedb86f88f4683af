"""Django signals that a project may receive, with their payloads."""

from __future__ import annotations

from typing import Any

from django.dispatch import Signal


class QuickSignal(Signal):
    """A signal that costs async code no thread where all who listen are quick.

    Django calls a sync receiver of an async sender in a thread, since it may block. One
    that says otherwise, by a method ``is_quick()``, is called at once.
    """

    async def asend_robust(self, sender: Any, **named: Any) -> list[tuple[Any, Any]]:
        if self._are_quick(sender):
            return self.send_robust(sender, **named)
        return await super().asend_robust(sender, **named)

    def _are_quick(self, sender: Any) -> bool:
        blocking, awaited = self._live_receivers(sender)
        return not awaited and all(
            hasattr(receiver, "is_quick") and receiver.is_quick() for receiver in blocking
        )


#: One operation at OpenAI ended, well or not, with all of its attempts. A stream
#: ends when its last piece was read, or when it was closed. Sent in the caller's thread.
#: Payload: ``alias``, ``endpoint`` (path below the base URL), ``model``, ``outcome``
#: (``"ok"``, the error's class name, or ``"closed"`` for a stream that its reader left),
#: ``status``, ``request_id``, ``attempts`` (HTTP requests that were sent; 0 if it was
#: refused in this process), ``elapsed_ms``; ``input_tokens``, ``cached_tokens`` (of the
#: input) and ``output_tokens``, None if unknown, ``is_estimated`` if they were not told
#: by the service; ``cost`` (US dollars, a Decimal; None if unknown), ``is_embedded``
#: (answered by the embedded model); ``tenant``, ``user`` and ``feature``, "" if not said.
#: A receiver whose ``is_quick()`` is true is called in the event loop itself.
openai_call_finished = QuickSignal()

#: A batch of sources was brought in step. Payload: ``index`` (its label),
#: ``embedded`` (texts sent to the model), ``stored`` and ``removed`` (chunks),
#: ``failed`` (sources).
embeddings_synced = Signal()
