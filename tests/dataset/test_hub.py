"""`hf://` as input: a dataset of the Hugging Face hub, from a small hub on this machine."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.storage import open_filesystem
from nemo_llm_stage.dataset.unchanged import check_unchanged
from nemo_llm_stage.errors import ConfigError, InputError
from nemo_llm_stage.run import verify_output

pytest.importorskip("huggingface_hub")

COMMIT = "a" * 40
REPO = "me/data"


class Hub(BaseHTTPRequestHandler):
    """What `HfFileSystem` asks of the hub: a repository's commit, its tree, what is known of paths, and bytes."""

    folder: Path

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(rf"/api/datasets/{REPO}/tree/[^/]+/?(.*)", path):
            self._say(self._entries(self.folder / found[1]))
        elif found := re.fullmatch(rf"/datasets/{REPO}/resolve/[^/]+/(.*)", path):
            self._send_file(self.folder / found[1])
        elif path.startswith(f"/api/datasets/{REPO}"):
            self._say({"id": REPO, "sha": COMMIT, "siblings": [], "private": False})
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paths = [self.folder / path for path in body["paths"]]
        self._say([self._entry(path) for path in paths if path.exists()])

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _entries(self, folder: Path) -> list[dict[str, Any]]:
        is_recursive = "recursive=true" in self.path.lower()
        return [self._entry(path) for path in sorted(folder.rglob("*") if is_recursive else folder.glob("*"))]

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "d" * 40, "size": 0}
        data = path.read_bytes()
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": digest}

    def _say(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, {})

    def _send_file(self, path: Path) -> None:
        if not path.exists():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        headers = {"ETag": '"e"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._send(data, status, headers)

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a dataset's repository."""
    folder = tmp_path / "repository"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfFolder", (Hub,), {"folder": folder}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": url, "skip_instance_cache": True})
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_reads_a_dataset_of_the_hub(job: Any, hub: Path) -> None:
    """A folder of it, with several formats of names; the README is ignored."""
    (hub / "data").mkdir()
    (hub / "README.md").write_text("# Data")
    table = pa.table({"id": range(30), "text": [f"t{number}" for number in range(30)]})
    pq.write_table(table.slice(0, 20), hub / "data" / "train-00000-of-00002.parquet", row_group_size=7)
    pq.write_table(table.slice(20), hub / "data" / "train-00001-of-00002.parquet")
    job.run(input=f"hf://datasets/{REPO}", rows_per_partition=9)
    assert [row["text"] for row in job.rows()] == table.column("text").to_pylist()
    assert verify_output(str(job.folder / "out"), compares_rows=True).problems == []


def test_a_glob_and_a_single_file(hub: Path) -> None:
    """As of any other place; a file that is changed there is noticed."""
    (hub / "a.jsonl").write_text('{"text": "a"}\n')
    (hub / "b.csv").write_text("text\nb\n")
    assert [file.path for file in find_files(f"hf://datasets/{REPO}/*.jsonl")] == [f"hf://datasets/{REPO}/a.jsonl"]
    files = find_files(f"hf://datasets/{REPO}/b.csv")
    check_unchanged(files)
    (hub / "b.csv").write_text("text\nc\n")
    with pytest.raises(InputError, match="the input was changed"):
        check_unchanged(files)


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for S3."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "hf", raising=False)  # noqa: SLF001 - no other way to forget
    with pytest.raises(ConfigError, match=r"pip install 'nemo-llm-stage\[hf\]'"):
        open_filesystem("hf://datasets/me/data/a.parquet")
