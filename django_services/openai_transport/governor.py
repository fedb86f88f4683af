"""The transport under the official client: the way of every call, from ask to answer.

One way for ``client.responses.create()`` and for ``embed()``, for sync and async
clients: `_Operation`, which asks its wire to send, to wait and to look up. The SDK's
own retries are off; a call that the SDK sends again all the same (after
``client.with_options(max_retries=…)``) is attempted once. Imported when a client
is built, since it loads httpx2.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import httpx2

from ..exceptions import (
    BudgetExceeded,
    QuotaExhausted,
    RateLimited,
    ServiceUnavailable,
)
from ..signals import openai_call_finished
from . import answers, embedding_cache, pace, telemetry, waiting
from .budgets import Reservation
from .call import Call, Ending, Policy, limits_told, reading_of
from .controls import Cause, Circuit, Controls, controls_of
from .faults import BUDGET, CIRCUIT_OPEN, LIMITED, PRICE_UNKNOWN, retry_after
from .limits import Booking
from .network import until
from .streams import AsyncWatchedStream, Events, WatchedStream

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after a call's deadline, when what it reserved is given back if nobody settled it.
#: A stream may go on for longer than its deadline, but not without end.
_GRACE = 10 * 60.0


class GovernedTransport(httpx2.BaseTransport):
    """Governs the calls of a sync client.

    Args:
        inner: What sends one request and returns its answer.
        policy: How the calls are governed.
    """

    def __init__(self, inner: httpx2.BaseTransport, policy: Policy) -> None:
        self._inner = inner
        self._policy = policy
        self._wire = _SyncWire(inner)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return _completed(_Operation(Call(self._policy, request), self._wire).answer())

    def close(self) -> None:
        self._inner.close()


class AsyncGovernedTransport(httpx2.AsyncBaseTransport):
    """Governs the calls of an async client; see `GovernedTransport`."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, policy: Policy) -> None:
        self._inner = inner
        self._policy = policy
        self._wire = _AsyncWire(inner)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await _Operation(Call(self._policy, request), self._wire).answer()

    async def aclose(self) -> None:
        await self._inner.aclose()


# The way of a call --------------------------------------------------------------------


class _Operation:
    """One call under way: from what it may do to what it came to."""

    def __init__(self, call: Call, wire: _Wire) -> None:
        self._call = call
        self._wire = wire
        # What the embedded model answers costs nothing and has no limits.
        is_governed = not call.settings.is_embedded
        self._controls = controls_of(call.policy.alias) if is_governed else None
        self._circuit: Circuit | None = None
        self._reservation: Reservation | None = None
        self._booking: Booking | None = None
        self._has_verdict = True
        self._span = telemetry.UNWATCHED

    async def answer(self) -> httpx2.Response:
        """Return the answer that the caller gets."""
        call = self._call
        known = await self._known_embeddings()
        if known is not None:
            return answers.embeddings(call.request, known)
        self._span = telemetry.begin(
            call.endpoint, call.asked, alias=call.policy.alias, settings=call.settings
        )
        with self._span:
            try:
                response = await self._refusal() or await self._attempts()
            except httpx2.RequestError:
                await self._end(Ending(outcome=ServiceUnavailable.__name__))
                raise
            except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
                # Broken off, as by a cancelled task: nobody knows what it came to, and its
                # reservation lapses by itself.
                await self._tell(Ending(outcome=type(error).__name__))
                raise
        if call.is_stream(response):
            events = Events(response.headers.get("content-encoding", ""), self._span.received_first)
            self._wire.watch(events, response, self._end_of_stream(response, events))
        else:
            await self._end(call.ending(response))
            await self._keep_embeddings(response)
        return response

    # May it be sent?

    async def _refusal(self) -> httpx2.Response | None:
        if self._controls is None:
            return None
        return self._refused_by_circuit(self._controls) or await self._refused_by_budget(
            self._controls
        )

    def _refused_by_circuit(self, controls: Controls) -> httpx2.Response | None:
        circuit = controls.circuit(self._call.credentials)
        seconds = circuit.breaker.refused_for()
        if seconds is None:
            self._circuit, self._has_verdict = circuit, False
            return None
        cause = circuit.cause
        message = (
            f"Not sent: the service's last answers were HTTP {cause.status}. "
            f"It is tried again in {seconds:.0f} s."
        )
        return self._not_sent(cause.status, cause.code, message, seconds)

    async def _refused_by_budget(self, controls: Controls) -> httpx2.Response | None:
        call = self._call
        if not (call.is_paid and controls.budgets.has_budgets):
            return None
        cost = call.highest_cost()
        if cost is None:
            message = (
                f"Not sent: a budget is set, and what the model {call.model!r} may cost is not "
                f'known. Give its price in DJANGO_SERVICES["OPENAI"]["{call.policy.alias}"]'
                '["PRICES"], or max_output_tokens in the request.'
            )
            return self._not_sent(400, PRICE_UNKNOWN, message)
        try:
            self._reservation = await self._wire.do(
                controls.budgets.reserve,
                controls.budgets.areserve,
                cost,
                call.attribution,
                lapses_after=call.deadline.remaining + _GRACE,
            )
        except BudgetExceeded as refusal:
            return self._not_sent(429, BUDGET, str(refusal), refusal.retry_after)
        except ServiceUnavailable as refusal:
            return self._not_sent(503, CIRCUIT_OPEN, str(refusal), refusal.retry_after)
        return None

    def _not_sent(
        self, status: int, code: str | None, message: str, retry_after: float | None = None
    ) -> httpx2.Response:
        """Return the refusal of a call that this process does not send."""
        return answers.error(
            self._call.request, status, message, code, is_final=True, retry_after=retry_after
        )

    async def _turn(self) -> httpx2.Response | None:
        """Wait for the call's turn within the limits a minute; refuse it if it is too far."""
        call, controls = self._call, self._controls
        if controls is None or call.request.method != "POST":
            return None
        limiter, limit = controls.limiter, call.limit
        if limiter.is_open(call.model, limit):
            return None
        booking = await self._wire.do(
            limiter.book,
            limiter.abook,
            call.model,
            tokens=call.estimated_tokens() if limit.tokens else 0,
            limit=limit,
            patience=call.deadline.remaining,
        )
        while booking.delay:
            try:
                await self._wire.sleep(booking.delay)
            except BaseException:
                # Broken off while it waited, as by a cancelled task: another may have its turn.
                await self._wire.do(limiter.cancel, limiter.acancel, booking)
                raise
            booking = await self._wire.do(
                limiter.confirm, limiter.aconfirm, booking, patience=call.deadline.remaining
            )
        if booking.is_granted:
            self._booking = booking
            return None
        return self._not_sent(429, LIMITED, f"Not sent: {booking.reason}", booking.retry_after)

    # Its attempts

    async def _attempts(self) -> httpx2.Response:
        call = self._call
        while True:
            refusal = await self._turn()
            if refusal is not None:
                return refusal
            call.start_attempt()
            try:
                response = await self._wire.send(call)
            except httpx2.RequestError as error:
                self._heed_error()
                delay = call.delay_after_error(error)
                if delay is None:
                    raise
                self._span.retried(type(error).__name__, delay)
            else:
                response = call.verdict_on(response)
                await self._heed(response)
                delay = call.delay_after(response)
                if delay is None:
                    return response
                self._span.retried(f"HTTP {response.status_code}", delay)
                await self._wire.do(response.close, response.aclose)
            await self._wire.sleep(delay)

    def _heed_error(self) -> None:
        self._has_verdict = True
        if self._circuit is not None:
            self._circuit.cause = Cause()
            self._circuit.breaker.failed()

    async def _heed(self, response: httpx2.Response) -> None:
        """Let what the service answered govern the calls that come after."""
        circuit, controls, status = self._circuit, self._controls, response.status_code
        if circuit is None or controls is None:
            return
        self._has_verdict = True
        if status < 300 or reading_of(response) is not None:
            circuit.breaker.succeeded()
            await self._block(controls, pace.used_up_for(limits_told(response)))
            return
        kind, code = self._call.error_of(response), self._call.code_of(response)
        if status == 401 or kind is QuotaExhausted:
            # No waiting helps: every other call would be refused too.
            circuit.cause = Cause(status, code)
            circuit.breaker.trip()
        elif kind is RateLimited:
            circuit.breaker.released()
            await self._block(controls, retry_after(response.headers))
        elif status >= 500 or status == 408:
            circuit.cause = Cause()
            circuit.breaker.failed()
        else:
            circuit.breaker.succeeded()

    async def _block(self, controls: Controls, seconds: float | None) -> None:
        """Have every worker wait as long as the service asked this one to."""
        if seconds:
            limiter, model = controls.limiter, self._call.model or ""
            await self._wire.do(limiter.block, limiter.ablock, model, seconds)

    # How it ended

    def _end_of_stream(
        self, response: httpx2.Response, events: Events
    ) -> Callable[[BaseException | None, bool], Coroutine[Any, Any, None]]:
        async def ended(error: BaseException | None, whole: bool) -> None:
            ending = self._call.ending_of_stream(response, events, error, whole=whole)
            await self._end(ending)

        return ended

    async def _end(self, ending: Ending) -> None:
        """Settle what was reserved, and tell who listens."""
        if self._controls is not None:
            await self._settle(self._controls, ending)
        await self._tell(ending)

    async def _settle(self, controls: Controls, ending: Ending) -> None:
        usage = ending.usage
        if self._reservation is not None:
            budgets, cost = controls.budgets, self._call.cost(ending)
            await self._wire.do(budgets.settle, budgets.asettle, self._reservation, cost)
        if self._booking is not None and usage.input_tokens is not None:
            used = usage.input_tokens + (usage.output_tokens or 0)
            limiter = controls.limiter
            await self._wire.do(limiter.settle, limiter.asettle, self._booking, used)

    async def _tell(self, ending: Ending) -> None:
        if self._circuit is not None and not self._has_verdict:
            # It may have been the probe, which another one may be now.
            self._circuit.breaker.released()
        self._span.end(
            outcome=ending.outcome,
            status=ending.response.status_code if ending.response else None,
            usage=ending.usage,
            answer=ending.body,
            attempts=self._call.attempts,
        )
        # Robust: whoever listens must not make a call fail that went well.
        await self._wire.do(
            openai_call_finished.send_robust,
            openai_call_finished.asend_robust,
            sender=GovernedTransport,
            **self._call.payload(ending),
        )

    # Embeddings that are known already

    async def _known_embeddings(self) -> bytes | None:
        call = self._call
        if not self._may_be_kept:
            return None
        return await self._wire.do(
            embedding_cache.answer_for, embedding_cache.aanswer_for, call.asked, call.settings
        )

    async def _keep_embeddings(self, response: httpx2.Response) -> None:
        call, reading = self._call, reading_of(response)
        if self._may_be_kept and reading is not None and not reading.faults:
            await self._wire.do(
                embedding_cache.keep, embedding_cache.akeep, call.asked, reading, call.settings
            )

    @property
    def _may_be_kept(self) -> bool:
        return self._call.endpoint == "/embeddings" and bool(self._call.settings.embedding_cache)


# What waits, sends and looks up -------------------------------------------------------


class _Wire(ABC):
    """What a call needs done. Of a sync client nothing of it ever suspends."""

    @abstractmethod
    async def send(self, call: Call) -> httpx2.Response:
        """Send the request once, and read the answer unless it is a stream."""

    @abstractmethod
    async def do(
        self,
        blocking: Callable[P, T],
        awaited: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call the one of two twins that suits the client."""

    @abstractmethod
    def watch(self, events: Events, response: httpx2.Response, ended: _Ended) -> None:
        """Look at the answer's pieces as they pass, and tell when there are no more."""

    async def sleep(self, seconds: float) -> None:
        await self.do(waiting.sleep, waiting.asleep, seconds)


_Ended = Callable[[BaseException | None, bool], Coroutine[Any, Any, None]]


class _SyncWire(_Wire):
    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self._inner = inner

    async def send(self, call: Call) -> httpx2.Response:
        with until(call.deadline):
            response = self._inner.handle_request(call.request)
            if not call.is_stream(response):
                response.read()
        return response

    async def do(
        self,
        blocking: Callable[P, T],
        awaited: Callable[P, Coroutine[Any, Any, T]],  # noqa: ARG002 - the other twin
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return blocking(*args, **kwargs)

    def watch(self, events: Events, response: httpx2.Response, ended: _Ended) -> None:
        def told(error: BaseException | None, whole: bool) -> None:
            _completed(ended(error, whole))

        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = WatchedStream(response.stream, events, told)


class _AsyncWire(_Wire):
    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def send(self, call: Call) -> httpx2.Response:
        try:
            async with asyncio.timeout(call.deadline.remaining):
                response = await self._inner.handle_async_request(call.request)
                if not call.is_stream(response):
                    await response.aread()
        except TimeoutError:
            raise httpx2.ReadTimeout("the call's deadline has passed") from None
        return response

    async def do(
        self,
        blocking: Callable[P, T],  # noqa: ARG002 - the other twin
        awaited: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return await awaited(*args, **kwargs)

    def watch(self, events: Events, response: httpx2.Response, ended: _Ended) -> None:
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = AsyncWatchedStream(response.stream, events, ended)


def _completed(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never suspends to its end: the way of a call, for a sync client."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("A call of a sync client was suspended.")
