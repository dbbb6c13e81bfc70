"""HTTP/1.1 on the event loop: bytes out, bytes back. Knows nothing of LLMs."""
