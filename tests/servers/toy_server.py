"""A server that starts in no time: is healthy, or fails as told. Run as a program."""

from __future__ import annotations

import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in {"/health", "/v1/models"} else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Obey the words: a port, then ``says TEXT``, ``children FILE``, ``sleeps``, ``hides``, ``once FILE TEXT``."""
    port, *words = sys.argv[1:]
    if words[:1] == ["says"]:
        sys.exit("\n".join(words[1:]))
    if words[:1] == ["once"] and not Path(words[1]).exists():
        Path(words[1]).touch()
        sys.exit(words[2])
    if words[:1] == ["sleeps"]:
        sys.stderr.write("loading weights\n")
        time.sleep(600)
    if words[:1] == ["children"]:  # one that has left its parent's session, as engines do
        nap = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(nap, start_new_session=True)
        Path(words[1]).write_text(str(child.pid))
    HTTPServer(("127.0.0.1" if "hides" in words else "", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
