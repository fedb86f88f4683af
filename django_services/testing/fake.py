"""An OpenAI that does as a test tells it, in this process."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import conf
from . import chat, responses
from .answers import JSON, Answer, Broken, error_answer, json_answer
from .calls import Arrivals, Call
from .files import Files
from .replies import Reply, default_reply, reply_of

#: What one request gets, by the request.
Do = Callable[[Call], Answer | Broken]


class _Speaking(NamedTuple):
    """An endpoint where the model says something."""

    answer: Callable[[Call, Reply], Answer]
    schema_of: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


_SPEAKING = {
    "/chat/completions": _Speaking(chat.answer, chat.schema_of),
    "/responses": _Speaking(responses.answer, responses.schema_of),
}


@dataclass(slots=True, eq=False, repr=False)
class _Told:
    """What the test told the fake to do, and for how many requests yet."""

    do: Callable[[Call], Any]
    endpoints: Collection[str] = ()  # (): any
    left: int | None = 1  # None: for good

    def takes(self, call: Call) -> bool:
        return self.left != 0 and (not self.endpoints or call.endpoint in self.endpoints)

    def use(self) -> None:
        if self.left is not None:
            self.left -= 1


class FakeOpenAI(Arrivals):
    """Answers every request of the clients, records it, and fails where it is told to.

    What is told is used up in the order of telling, each by the first requests that it
    fits; ``times=None`` makes it stay. Where nothing is told it answers well: with
    `replies.DEFAULT_TEXT` or the plainest example of the schema asked for, with vectors by
    meaning, with no text flagged. Failures meet single requests, and the transport tries
    again as it always does, but waits for nothing: what it would have waited is in `waits`.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Seconds before each answer; a request's timeout ends the wait.
        self.latency = 0.0
        #: Sent with each answer, such as ``x-ratelimit-remaining-requests``.
        self.headers: dict[str, str] = {}
        #: Seconds that the transport would have waited, each time.
        self.waits: list[float] = []
        self._told: list[_Told] = []
        self._hooks: list[_Told] = []
        self._flagged: list[tuple[Callable[[str], bool], frozenset[str]]] = []
        self._embed: Callable[[str], Any] | None = None
        self._files = Files(self._batch_line)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<FakeOpenAI, {len(self.calls)} calls>"

    # What the model says

    def reply(
        self,
        content: Any = "",
        *,
        tool_calls: Iterable[tuple[str, Mapping[str, Any] | str]] = (),
        refusal: str = "",
        finish_reason: str = "",
        cut_after: int | None = None,
        disconnects: bool = False,
        times: int | None = 1,
    ) -> None:
        """Say this to the next chat completion or response, streamed if that is asked for.

        Args:
            content: A text; a Pydantic model, dict or list, said as JSON; or a function
                that takes the `Call` and returns one of these.
            tool_calls: Pairs of a tool's name and its arguments.
            refusal: What the model says in refusing to answer.
            finish_reason: Such as ``"length"`` or ``"content_filter"``.
            cut_after: End a stream after so many pieces, without its end; a piece is a word.
            disconnects: Break the connection where the stream is cut.
            times: How many requests; None: all from now on.
        """
        reply = functools.partial(
            reply_of,
            tool_calls=list(tool_calls),
            refusal=refusal,
            finish_reason=finish_reason,
            cut_after=cut_after,
            disconnects=disconnects,
        )

        def say(call: Call) -> Answer:
            said = content(call) if callable(content) else content
            return _SPEAKING[call.endpoint].answer(call, reply(said))

        self._tell(say, _SPEAKING, times)

    def replies(self, *contents: Any) -> None:
        """Say these to the next requests, one to each; see `reply`."""
        for content in contents:
            self.reply(content)

    def flag(self, *categories: str, when: str | Callable[[str], bool] = "") -> None:
        """From now on moderation flags texts with these categories.

        Args:
            categories: Such as ``"violence"`` or ``"harassment/threatening"``.
            when: What is in the texts that are meant, or a function that tells them.
        """
        is_meant = when if callable(when) else lambda text: when in text
        self._flagged.append((is_meant, frozenset(categories)))

    def embed_with(self, embed: Callable[[str], Any]) -> None:
        """From now on vectors are this function's: of a text, as many numbers or fewer.

        Zeros are added up to the length that is asked for, so two numbers will often do.
        """
        self._embed = embed

    def answer(
        self,
        endpoint: str,
        content: Any,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer the next request to any endpoint with exactly this.

        Args:
            endpoint: Path below the base URL, such as ``"/images/generations"``.
            content: Bytes, or what is sent as JSON.
            status: HTTP status.
            headers: More headers.
            times: How many requests; None: all from now on.
        """
        raw = content if isinstance(content, bytes) else json_answer(content).content
        told = Answer(content=raw, status=status, headers={**JSON, **(headers or {})})
        self._tell(lambda call: told, [endpoint], times)  # noqa: ARG005

    # What fails

    def fail(
        self,
        status: int = 500,
        code: str | None = None,
        *,
        message: str = "The fake was told to fail.",
        param: str | None = None,
        retry_after: float | None = None,
        endpoint: str | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer the next requests with an error of the API's shape.

        Args:
            status: HTTP status. 408, 409, 429 and 500 up are tried again, so one of them
                reaches the caller only if it comes as often: ``times=None``.
            code: Such as ``"insufficient_quota"`` or ``"context_length_exceeded"``.
            message: What the error says.
            param: The parameter of the request that it is about.
            retry_after: Seconds that the service asks to wait.
            endpoint: Which requests; all if None.
            times: How many requests; None: all from now on.
        """
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        told = error_answer(status, message, code=code, param=param, headers=headers)
        self._tell(lambda call: told, _one(endpoint), times)  # noqa: ARG005

    def timeout(self, *, endpoint: str | None = None, times: int | None = 1) -> None:
        """Let the next requests time out, at once; see `fail`."""
        self._tell(lambda call: Broken.TIMEOUT, _one(endpoint), times)  # noqa: ARG005

    def disconnect(self, *, endpoint: str | None = None, times: int | None = 1) -> None:
        """Break the connection of the next requests; see `fail`."""
        self._tell(lambda call: Broken.DISCONNECT, _one(endpoint), times)  # noqa: ARG005

    # What happens meanwhile

    def on_request(
        self, do: Callable[[Call], object], *, endpoint: str | None = None, times: int | None = 1
    ) -> None:
        """Run this with the `Call` while the next request waits for its answer.

        Under an async client it runs where Django's ORM may be used; it may be async.
        """
        self._hooks.append(_Told(do, _one(endpoint), times))

    # For the transport

    def arrive(self, call: Call) -> list[Callable[[Call], object]]:
        """Note a request; return what is to be run while it waits."""
        with self._lock:
            self.calls.append(call)
            hooks = [hook for hook in self._hooks if hook.takes(call)]
            for hook in hooks:
                hook.use()
        return [hook.do for hook in hooks]

    def decide(self, call: Call) -> Answer | Broken:
        """Return what a request gets."""
        with self._lock:
            told = next((told for told in self._told if told.takes(call)), None)
            if told is not None:
                told.use()
        # Outside of the lock: the test's own function may make a call too.
        try:
            answer: Answer | Broken = self._well(call) if told is None else told.do(call)
        except Exception as error:
            # Of a kind that no code under test takes for an error of the network.
            raise AssertionError(f"What the fake was told to do failed: {error!r}") from error
        return answer

    def request_id(self) -> str:
        return f"req_fake_{next(self._numbers)}"

    # Answering well

    def _tell(self, do: Do, endpoints: Iterable[str], times: int | None) -> None:
        with self._lock:
            self._told = [told for told in self._told if told.left != 0]
            wanted = ["/" + endpoint.strip("/") for endpoint in endpoints]
            self._told.append(_Told(do, wanted, times))

    def _well(self, call: Call) -> Answer:
        if call.method == "POST" and call.endpoint in _SPEAKING:
            return self._speak(call)
        if call.method == "POST" and call.endpoint in {"/embeddings", "/moderations"}:
            return self._look_at_texts(call)
        if call.method == "GET" and call.endpoint.startswith("/models"):
            return _models(call)
        return self._files.answer(call) or _unknown(call)

    def _speak(self, call: Call) -> Answer:
        speaking = _SPEAKING[call.endpoint]
        return speaking.answer(call, default_reply(speaking.schema_of(call.body)))

    def _look_at_texts(self, call: Call) -> Answer:
        from . import vectors

        if call.endpoint == "/embeddings":
            return vectors.answer(call, _dimensions(call), self._embed)
        return vectors.moderation(call, self._categories)

    def _categories(self, text: str) -> set[str]:
        return {name for is_meant, names in self._flagged if is_meant(text) for name in names}

    def _batch_line(self, call: Call) -> Answer | Broken:
        self.arrive(call)
        return self.decide(call)


def _one(endpoint: str | None) -> tuple[str, ...]:
    return () if endpoint is None else ("/" + endpoint.strip("/"),)


def _dimensions(call: Call) -> int:
    """Return how long the model's vectors are: as asked, its own, or as the alias says."""
    from .. import embedded
    from ..exceptions import ConfigurationError
    from ..openai_service import embedding_space

    asked = call.body.get("dimensions")
    if asked:
        return int(asked)
    if call.model == embedded.MODEL:
        return embedded.DIMENSIONS
    try:
        return embedding_space(call.alias, call.model)[1]
    except ConfigurationError:
        return embedded.DIMENSIONS


def _models(call: Call) -> Answer:
    settings = conf.openai(call.alias)
    names = (settings.model, settings.embedding_model, settings.moderation_model)
    models = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "fake"} for name in names
    }
    if call.endpoint == "/models":
        return json_answer({"object": "list", "data": list(models.values())})
    name = call.endpoint.removeprefix("/models/")
    return json_answer({**models[settings.model], "id": name})


def _unknown(call: Call) -> Answer:
    return error_answer(
        404,
        f"fake_openai() has no answer to {call.method} {call.endpoint}. "
        f'Give it one: fake.answer("{call.endpoint}", …).',
        code="fake_has_no_answer",
        is_own=True,
    )
