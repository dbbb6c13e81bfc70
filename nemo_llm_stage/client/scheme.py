"""
Does a server speak the other of http and https: looked at only if a connection to it fails or hangs.

Sends no key and no row. Knows a few bytes of each protocol; goes through no proxy.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

from nemo_llm_stage.client.endpoints.address import Endpoint

PROBE_TIMEOUT_S = 3.0
"""For the whole look: a server that speaks the protocol answers at once."""


async def url_that_answers(endpoint: Endpoint) -> str | None:
    """Return the endpoint's URL with the other scheme if the server speaks that on the same port; else None."""
    parts = urlsplit(endpoint.base_url)
    port = parts.port or (443 if endpoint.is_tls else 80)
    speaks = _speaks_http if endpoint.is_tls else _speaks_tls
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            if not await speaks(endpoint.host, port):
                return None
    except (OSError, TimeoutError):
        return None
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    return parts._replace(scheme="http" if endpoint.is_tls else "https", netloc=f"{host}:{port}").geturl()


async def _speaks_http(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        status = await reader.readline()
        return status.startswith(b"HTTP/") and b" 400" not in status  # a TLS server's answer to plain http, as nginx's
    finally:
        writer.close()


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether it is TLS; nothing is sent
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.close()
    return True
