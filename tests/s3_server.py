"""
A real S3 server, moto's, in a process of its own: `python s3_server.py` prints its URL.

It serves one request after the other, so that a conditional PUT is decided as S3 decides it. The names of some buckets
say how they differ from S3, as other stores do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{words}</Message></Error>"


class OtherStores:
    """
    Passes requests on to `app`, but for conditional PUTs.

    A bucket called ``unconditional…`` knows none (501), ``terse…`` does not say which condition failed, and ``busy…``
    answers the first one for each key with 409, as S3 does where two come at once.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._busy: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if "HTTP_IF_NONE_MATCH" not in environ or environ["REQUEST_METHOD"] not in ("PUT", "POST"):
            return self._app(environ, start_response)
        if path.startswith("/unconditional"):
            return _refuse(environ, start_response, "501 Not Implemented", "NotImplemented")
        if path.startswith("/busy") and path not in self._busy:
            self._busy.add(path)
            return _refuse(environ, start_response, "409 Conflict", "ConditionalRequestConflict")
        body = b"".join(self._app(environ, start_response))
        return [body.replace(b"Condition>", b"What-else>") if path.startswith("/terse") else body]


def _refuse(environ: dict[str, Any], start_response: Callable[..., Any], status: str, code: str) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    body = _ERROR.format(code=code, words="not here").encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def main() -> None:
    """Serve until killed."""
    app = OtherStores(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, request_handler=MotoRequestHandler)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
