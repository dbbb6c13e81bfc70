"""
An object store in a folder of this machine, whose objects outlive the processes that a crash test kills.

An object is whole or not there, a conditional put is decided once, and there are no empty folders: as in S3. Call
`register`; its URLs are ``bucket:///folder/…``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec

PROTOCOL = "bucket"


class FolderStore(fsspec.AbstractFileSystem):
    """The store."""

    protocol: ClassVar[str] = PROTOCOL
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix(f"{PROTOCOL}://").strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Tell of one object, or of a folder with some in it."""
        path = self._strip_protocol(path)
        stat = Path(path).stat()
        if Path(path).is_dir():
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": stat.st_size, "type": "file", "mtime": stat.st_mtime, "ino": stat.st_ino}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List a folder."""
        found = []
        for entry in sorted(Path(self._strip_protocol(path)).iterdir()):
            with suppress(FileNotFoundError):  # removed meanwhile
                found.append(self.info(str(entry)))
        return found if detail else [each["name"] for each in found]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put an object."""
        target = Path(self._strip_protocol(path))
        _ASIDE.mkdir(parents=True, exist_ok=True)
        aside = _ASIDE / uuid.uuid4().hex
        aside.write_bytes(value)
        put = os.link if mode == "create" else os.replace
        try:
            while True:
                target.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # the folder is gone again: its last object was removed meanwhile
                    put(aside, target)
                    return
        finally:
            aside.unlink(missing_ok=True)

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **_: Any) -> None:
        """Put an object that is in a file."""
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        target = Path(self._strip_protocol(path))
        target.unlink()
        with suppress(OSError):
            target.parent.rmdir()

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """Move an object; a copy first, as stores do."""
        self.pipe_file(path2, self.cat_file(path1))
        self.rm_file(path1)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove objects, or a folder of them."""
        for each in [path] if isinstance(path, str) else path:
            if Path(self._strip_protocol(each)).is_dir():
                shutil.rmtree(self._strip_protocol(each))
            else:
                self.rm_file(each)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there are no empty folders."""

    mkdir = makedirs

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        assert mode == "rb", mode
        return Path(self._strip_protocol(path)).open("rb")


_ASIDE = Path(tempfile.gettempdir()) / "nemo_llm_stage_store"
"""What is not an object yet. Whoever is killed meanwhile leaves it there."""


def register() -> None:
    """Let fsspec know the store, in this process."""
    fsspec.register_implementation(PROTOCOL, FolderStore, clobber=True)
