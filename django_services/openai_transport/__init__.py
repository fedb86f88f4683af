"""What every HTTP call to OpenAI passes through, the raw client's too.

`governor` is the transport under the official client: one owner of retries and
of the deadline, validation of what comes back, and the signal that a call ended.
`network` is the wire below it, `reading` makes vectors of an embeddings response,
`faults` says which error an answer means. All but `faults` load numpy or httpx2,
so they are imported when a client is built.
"""
