"""
A real S3 server, moto's, in a process of its own: `python s3_server.py [LATENCY_S [light]]` prints its URL.

It serves one request after the other, so that a conditional PUT is decided as S3 decides it; with a latency, requests
wait for it side by side. A ``light`` one gives whole objects without moto's dispatcher, which takes 3 ms of CPU for
each, one after the other: so the time of a client that reads many is its own. The names of some buckets say how they
differ from S3, as other stores do. ``GET /calls`` tells how many requests of each kind have come since the last look.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from s3_calls import kind_of
from werkzeug.serving import make_server

_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{words}</Message></Error>"


class OtherStores:
    """
    Passes requests on to `app`, but for conditional PUTs and signed URLs.

    A bucket called ``unconditional…`` knows none (501), ``terse…`` does not say which condition failed, and ``busy…``
    answers the first one for each key with 409, as S3 does where two come at once.
    One called ``unsigned…`` refuses signed URLs.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._busy: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/unsigned") and "Signature=" in environ.get("QUERY_STRING", ""):
            return _refuse(environ, start_response, "403 Forbidden", "AccessDenied")
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] not in ("PUT", "POST"):
            return self._app(environ, start_response)
        if path.startswith("/unconditional"):
            return _refuse(environ, start_response, "501 Not Implemented", "NotImplemented")
        if path.startswith("/busy") and path not in self._busy:
            self._busy.add(path)
            return _refuse(environ, start_response, "409 Conflict", "ConditionalRequestConflict")
        body = b"".join(self._app(environ, start_response))
        return [body.replace(b"Condition>", b"What-else>") if path.startswith("/terse") else body]


class Light:
    """Gives whole objects from moto's memory; passes all other requests on to `app`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
        is_whole = environ["REQUEST_METHOD"] == "GET" and environ.get("HTTP_RANGE", "bytes=0-") == "bytes=0-"
        if not (is_whole and key) or "versionId" in environ.get("QUERY_STRING", ""):
            return self._app(environ, start_response)
        found = _object_of(bucket, key)
        if found is None or not found.value:
            return self._app(environ, start_response)
        size = len(found.value)
        headers = [("Content-Length", str(size)), ("ETag", found.etag), ("Content-Type", "binary/octet-stream")]
        if "HTTP_RANGE" in environ:
            start_response("206 Partial Content", [*headers, ("Content-Range", f"bytes 0-{size - 1}/{size}")])
        else:
            start_response("200 OK", headers)
        return [found.value]


def _object_of(bucket: str, key: str) -> Any:
    for backends in s3_backends.values():
        for backend in backends.values():
            if bucket in backend.buckets:
                return backend.get_object(bucket, key)
    return None


class Slow:
    """Passes requests on to `app` one by one, each after a while; counts them."""

    def __init__(self, app: Any, latency_s: float) -> None:
        self._app, self._latency_s = app, latency_s
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/calls":
            with self._lock:
                calls, self._calls = self._calls, Counter()
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(calls).encode()]
        time.sleep(self._latency_s)
        with self._lock:
            self._calls[kind_of(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))] += 1
            return list(self._app(environ, start_response))


def _refuse(environ: dict[str, Any], start_response: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = _ERROR.format(code=code, words="not here").encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    """Serve until killed."""
    latency_s = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    store: Any = OtherStores(DomainDispatcherApplication(create_backend_app))
    app = Slow(Light(store) if "light" in sys.argv else store, latency_s)
    server = make_server("127.0.0.1", 0, app, request_handler=MotoRequestHandler, threaded=latency_s > 0)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
