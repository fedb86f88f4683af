"""What every HTTP call to OpenAI passes through, the raw client's too.

The way of a call, from ask to answer:

- `clients` makes the SDK's clients on the governed transport; `keys` gives their key.
- `governor` is that transport: one way for sync and async. `call` decides what each
  turn of it means, `controls` holds what all clients of an alias share.
- `limits` and `budgets` say whether it may be sent, now or ever; `shared` keeps their
  sums in Redis or here. `pace` knows what the service told of its own limits.
- `network` is the wire, `waiting` the waits, `hosts` which hosts tests may reach.
- `reading` makes vectors of an embeddings response, `streams` watches what is read piece
  by piece, `usage` and `catalogue` say what was used and what it costs, `faults` which
  error an answer means, `answers` makes those that nobody's server sent.
- `embedding_cache` keeps embeddings of equal texts, `telemetry` and `messages` tell
  OpenTelemetry.

What the verbs of `openai_service` decide: `texts` and `work` (embeddings), `prompts`,
`completions` and `completion_streams`, `moderation`, `tokens` and `vocabulary`;
`sending` sends it, `browser` passes a stream on. `context` is what travels beside a call.

What loads numpy, httpx2 or the SDK says so, and is imported when a client is built.
"""
