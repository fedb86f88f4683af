"""Files and batches, in memory: uploads are kept, a batch is done when it is next asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from .answers import CREATED, Answer, Broken, error_answer, json_answer
from .calls import Call, endpoint_of

_DAY = 24 * 60 * 60  # seconds


class Files:
    """The files and batches of one fake.

    Args:
        ask: Answers a line of a batch, as if it had arrived by itself.
    """

    def __init__(self, ask: Callable[[Call], Answer | Broken]) -> None:
        self._ask = ask
        self._files: dict[str, dict[str, Any]] = {}
        self._contents: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}

    def answer(self, call: Call) -> Answer | None:
        """Return the answer to a call of ``/files`` or ``/batches``; None to any other."""
        _, kind, *rest = call.endpoint.split("/")
        wanted = (call.method, kind, *(["…", *rest[1:]] if rest else []))
        if wanted not in _ROUTES:
            return None
        known = self._files if kind == "files" else self._batches
        if rest and rest[0] not in known:
            return error_answer(404, f"No such {kind[:-1]} object: {rest[0]}", param="id")
        return _ROUTES[wanted](self, call, *rest[:1])

    # Files

    def _upload(self, call: Call) -> Answer:
        filename, content = call.body.get("file", ("file", b""))
        return json_answer(self._keep(filename, content, str(call.body.get("purpose", ""))))

    def _keep(self, filename: str, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-fake-{len(self._contents) + 1}"
        self._contents[name] = content
        self._files[name] = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": CREATED,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        return self._files[name]

    def _file(self, call: Call, name: str) -> Answer:  # noqa: ARG002
        return json_answer(self._files[name])

    def _content(self, call: Call, name: str) -> Answer:  # noqa: ARG002
        headers = {"content-type": "application/octet-stream"}
        return Answer(content=self._contents[name], headers=headers)

    def _delete(self, call: Call, name: str) -> Answer:  # noqa: ARG002
        del self._files[name]
        return json_answer({"id": name, "object": "file", "deleted": True})

    def _list_files(self, call: Call) -> Answer:  # noqa: ARG002
        return _listed(self._files)

    # Batches

    def _create(self, call: Call) -> Answer:
        if call.body.get("input_file_id") not in self._files:
            return error_answer(400, "No such file.", param="input_file_id")
        name = f"batch_fake_{len(self._batches) + 1}"
        self._batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": call.body.get("endpoint"),
            "input_file_id": call.body["input_file_id"],
            "completion_window": call.body.get("completion_window", "24h"),
            "metadata": call.body.get("metadata"),
            "status": "in_progress",
            "created_at": CREATED,
            "expires_at": CREATED + _DAY,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }
        return json_answer(self._batches[name])

    def _batch(self, call: Call, name: str) -> Answer:
        batch = self._batches[name]
        if batch["status"] == "in_progress":
            self._run(batch, call.alias)
        return json_answer(batch)

    def _cancel(self, call: Call, name: str) -> Answer:  # noqa: ARG002
        batch = self._batches[name]
        if batch["status"] == "in_progress":
            batch.update(status="cancelled", cancelled_at=CREATED)
        return json_answer(batch)

    def _list_batches(self, call: Call) -> Answer:  # noqa: ARG002
        return _listed(self._batches)

    def _run(self, batch: dict[str, Any], alias: str) -> None:
        lines = list(self._answered(self._contents[batch["input_file_id"]], alias))
        good = [line for line, is_good in lines if is_good]
        bad = [line for line, is_good in lines if not is_good]
        batch.update(
            status="completed",
            completed_at=CREATED,
            output_file_id=self._written("output", good),
            error_file_id=self._written("error", bad),
            request_counts={"total": len(lines), "completed": len(good), "failed": len(bad)},
        )

    def _answered(self, content: bytes, alias: str) -> Iterator[tuple[dict[str, Any], bool]]:
        for number, line in enumerate(content.splitlines(), 1):
            asked = json.loads(line)
            endpoint = endpoint_of(asked["url"], "")
            answer = self._ask(
                Call(method=asked["method"], endpoint=endpoint, alias=alias, body=asked["body"])
            )
            told: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": asked["custom_id"]}
            if isinstance(answer, Broken):
                error = {"code": "batch_expired", "message": "This request was not executed."}
                yield {**told, "response": None, "error": error}, False
                continue
            response = {
                "status_code": answer.status,
                "request_id": f"req_batch_{number}",
                "body": json.loads(
                    b"".join(answer.content)
                    if isinstance(answer.content, tuple)
                    else answer.content
                ),
            }
            yield {**told, "response": response, "error": None}, answer.status < 300

    def _written(self, kind: str, lines: list[dict[str, Any]]) -> str | None:
        if not lines:
            return None
        content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        return str(self._keep(f"batch_{kind}.jsonl", content, "batch_output")["id"])


_ROUTES: dict[tuple[str, ...], Callable[..., Answer]] = {
    ("POST", "files"): Files._upload,
    ("GET", "files"): Files._list_files,
    ("GET", "files", "…"): Files._file,
    ("GET", "files", "…", "content"): Files._content,
    ("DELETE", "files", "…"): Files._delete,
    ("POST", "batches"): Files._create,
    ("GET", "batches"): Files._list_batches,
    ("GET", "batches", "…"): Files._batch,
    ("POST", "batches", "…", "cancel"): Files._cancel,
}


def _listed(entries: dict[str, dict[str, Any]]) -> Answer:
    return json_answer({"object": "list", "data": list(entries.values()), "has_more": False})
