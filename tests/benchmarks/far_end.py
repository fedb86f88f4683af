"""OpenAI's far end for benchmarks: answers from memory, after the time that a network takes.

Run as a program in a process of its own; prints its port. Vectors are a few made
beforehand, so that an answer costs the joining of strings: the benchmark proves that
it is not the bottleneck.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import numpy as np

MODEL = "text-embedding-3-small"
VECTORS = 64  # different ones, taken in turn


class FarEnd(asyncio.Protocol):
    def __init__(self, latency: float, encoded: list[bytes]) -> None:
        self.latency = latency
        self.encoded = encoded
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = self.received[end + 4 : end + 4 + length]
            if len(body) < length:
                return
            self.received = self.received[end + 4 + length :]
            asked = json.loads(body)
            answer = self.answer(len(asked["input"])) if "input" in asked else COMPLETION
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, answer)

    def answer(self, count: int) -> bytes:
        rows = b",".join(
            b'{"object":"embedding","index":%d,"embedding":"%b"}'
            % (number, self.encoded[number % VECTORS])
            for number in range(count)
        )
        body = (
            b'{"object":"list","data":[%b],"model":"%b","usage":{"prompt_tokens":1,'
            b'"total_tokens":1}}' % (rows, MODEL.encode())
        )
        return _http(body)


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


_MESSAGE = {"role": "assistant", "content": "With gzip."}
COMPLETION = _http(
    json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-6-luna",
            "choices": [{"index": 0, "finish_reason": "stop", "message": _MESSAGE}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16},
        }
    ).encode()
)


async def serve(dimensions: int, latency: float) -> None:
    random = np.random.default_rng(0).standard_normal((VECTORS, dimensions))
    rows = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype("<f4")
    encoded = [base64.b64encode(row.tobytes()) for row in rows]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FarEnd(latency, encoded), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
