"""
Folders on local disks and object stores.

`Folder.publish` writes a file only if it is not there yet, which is how each row is written once. Knows paths and
bytes; knows nothing of rows, formats or jobs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from nemo_llm_stage.dataset.file_stat import FileStat, local_names, local_stats, stats_in
from nemo_llm_stage.dataset.store_calls import BUCKET_PROTOCOLS, EXTRA_OF, has_bytes, read_whole, remove_files
from nemo_llm_stage.dataset.store_errors import as_os_errors, has_no_conditions, is_taken, may_pass
from nemo_llm_stage.dataset.writing import sync_folder, write_durably
from nemo_llm_stage.errors import ConfigError

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Error numbers of `os.link` on filesystems without hard links (FAT, some FUSE mounts)."""


_PAUSES_S = (0.1, 0.3, 1.0, 3.0)
"""Seconds to wait before each new try of a conditional PUT that collided with another: S3 answers both with 409."""


def open_filesystem(url: str) -> tuple[Any, str]:
    """
    Return fsspec's filesystem for `url` and the path in it.

    Raises:
        ConfigError: No such protocol, or the package that serves it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.partition("://")[0]
        extra = EXTRA_OF.get(protocol)
        hint = f" Install it with: pip install 'nemo-llm-stage[{extra}]'." if extra else ""
        raise ConfigError(f"cannot open {url!r}: {error}.{hint}") from error
    return fs, path


class Folder:
    """
    A folder that several processes write to without a lock.

    Args:
        url: A path, or a URL that fsspec knows (``s3://bucket/x``, ``gs://…``).

    Raises:
        OSError: From any method: the disk, the network or the store failed.
    """

    def __init__(self, url: str) -> None:
        self.fs, root = open_filesystem(str(url))
        self.is_local = isinstance(self.fs, LocalFileSystem)
        protocols = {self.fs.protocol} if isinstance(self.fs.protocol, str) else set(self.fs.protocol)
        self._is_bucket = bool(protocols & BUCKET_PROTOCOLS)
        self.root = root.rstrip("/") or "/"
        self.url = str(url).rstrip("/") or "/"

    def path(self, name: str = "") -> str:
        """Return the filesystem's path of `name` in this folder."""
        return f"{self.root}/{name}" if name else self.root

    @as_os_errors
    def names(self, sub: str = "") -> set[str]:
        """Return the names of the files in this folder, or in its subfolder `sub`; empty if there is no such folder."""
        if self.is_local:
            return local_names(self.path(sub))
        return self.contents(sub)[0]

    @as_os_errors
    def contents(self, sub: str = "") -> tuple[set[str], set[str]]:
        """Return the names of the files and of the folders in this folder or in `sub`, by one listing."""
        self.fs.invalidate_cache(self.path(sub))
        found: dict[str, set[str]] = {"file": set(), "directory": set()}
        with contextlib.suppress(FileNotFoundError):
            for entry in self.fs.ls(self.path(sub), detail=True):
                found.setdefault(entry["type"], set()).add(entry["name"].rstrip("/").rsplit("/", 1)[-1])
        return found["file"], found["directory"]

    @as_os_errors
    def stats(self) -> dict[str, FileStat]:
        """Return the files in this folder by name; empty if there is no such folder."""
        if self.is_local:
            return local_stats(self.root)
        self.fs.invalidate_cache(self.root)
        try:
            entries = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return {}
        return stats_in(entries)

    @as_os_errors
    def exists(self, name: str) -> bool:
        """Whether the file `name` exists."""
        self.fs.invalidate_cache(self.path(name).rsplit("/", 1)[0])
        return bool(self.fs.exists(self.path(name)))

    @as_os_errors
    def version_of(self, name: str) -> str | None:
        """Return a text that changes when the file `name` is replaced; None if there is no such file."""
        self.fs.invalidate_cache(self.path(name).rsplit("/", 1)[0])
        try:
            return str(self.fs.ukey(self.path(name)))
        except FileNotFoundError:
            return None

    @as_os_errors
    def read(self, name: str) -> bytes:
        """
        Return the file's bytes.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if self._is_bucket:
            return read_whole(self.fs, self.path(name))
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    @as_os_errors
    def has(self, name: str) -> bool:
        """Whether the file `name`, which has at least one byte, exists; one call on object stores."""
        return has_bytes(self.fs, self.path(name)) if self._is_bucket else self.exists(name)

    @as_os_errors
    def tail(self, name: str, num_bytes: int) -> bytes:
        """Return the last so many bytes of a file, or all of a smaller one."""
        data: bytes = self.fs.cat_file(self.path(name), start=-num_bytes)
        return data

    @as_os_errors
    def make(self, sub: str = "") -> None:
        """Create this folder, or its subfolder `sub`. Does nothing on object stores, which have no folders."""
        if not self._is_bucket:  # there, this would make a bucket that was mistyped
            self.fs.makedirs(self.path(sub), exist_ok=True)

    def scratch(self, sub: str, suffix: str) -> Path:
        """Return a new local path for a file that is then published; in `sub` if this folder is on a local disk."""
        name = f"{uuid.uuid4().hex}{suffix}"
        if not self.is_local:
            return Path(tempfile.gettempdir()) / f"nemo-llm-stage-{name}"
        self.make(sub)
        return Path(self.path(sub)) / name

    @as_os_errors
    def publish(self, scratch: Path, name: str) -> bool:
        """
        Make the file at `scratch` visible as `name` in one step, unless `name` exists.

        The first writer wins; later ones change nothing. This uses `os.link` on a local or NFS path and a conditional
        PUT on S3 and GCS. A store without conditional PUTs gets a plain PUT if `name` does not exist: two writers at
        the same instant may then both write, each the whole file. If another writer was first, `scratch` stays.

        Returns:
            Whether this call was the first.
        """
        is_first = self._link(scratch, Path(self.path(name))) if self.is_local else self._put(scratch, name)
        if is_first:
            scratch.unlink(missing_ok=True)
        return is_first

    def publish_bytes(self, data: bytes, name: str, *, scratch_sub: str) -> bool:
        """Publish a small file, given as bytes."""
        scratch = self.scratch(scratch_sub, ".tmp")
        write_durably(scratch, data)
        try:
            return self.publish(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)

    @as_os_errors
    def replace(self, scratch: Path, name: str) -> None:
        """Replace the file `name` by the one at `scratch`, in one step; `name` need not exist."""
        if self.is_local:
            scratch.replace(self.path(name))
            sync_folder(Path(self.path(name)).parent)
            return
        try:
            self.fs.put_file(str(scratch), self.path(name))
        finally:
            scratch.unlink(missing_ok=True)

    def replace_bytes(self, data: bytes, name: str, *, scratch_sub: str) -> None:
        """Replace the file `name` by one that holds `data`, in one step; `name` need not exist."""
        if not self.is_local:
            self._pipe(data, name)
            return
        scratch = self.scratch(scratch_sub, ".tmp")
        write_durably(scratch, data)
        self.replace(scratch, name)

    @as_os_errors
    def _pipe(self, data: bytes, name: str) -> None:
        self.fs.pipe_file(self.path(name), data)

    @as_os_errors
    def remove(self, name: str) -> None:
        """Remove the file `name` if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    @as_os_errors
    def remove_all(self, names: Collection[str]) -> None:
        """Remove files, those that exist, in one call for a thousand where the store can do that."""
        if self._is_bucket:
            remove_files(self.fs, [self.path(name) for name in names])
            return
        for name in names:
            self.remove(name)

    @as_os_errors
    def move(self, name: str, target: Folder) -> None:
        """Move the file `name` to the folder `target`. Does nothing if another process has moved it."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.mv(self.path(name), target.path(name))

    def remove_if_empty(self) -> None:
        """Remove this folder if it is on a local disk and empty."""
        if self.is_local:
            with contextlib.suppress(OSError):
                Path(self.root).rmdir()

    @as_os_errors
    def folders(self) -> set[str]:
        """Return the names of the folders in this one."""
        return self.contents()[1]

    def _link(self, scratch: Path, target: Path) -> bool:
        try:
            os.link(scratch, target)
        except FileExistsError:
            return False
        except OSError as error:
            if target.exists():  # also where `scratch` is gone: whoever finished the job has tidied it away
                return False
            if error.errno not in _NO_LINKS:
                raise
            scratch.replace(target)
        sync_folder(target.parent)
        return True

    def _bucket(self) -> str:
        return self.root.strip("/").partition("/")[0]

    def _keeps_conditions(self) -> bool:
        return _KEEPS_CONDITIONS.get(self._bucket(), False)

    def _prove_conditions(self, scratch: Path, name: str) -> None:
        """Find out, once, whether the store refuses to write again what this call has just written."""
        if not self._is_bucket or self._bucket() in _KEEPS_CONDITIONS:
            return
        _KEEPS_CONDITIONS[self._bucket()] = False
        with contextlib.suppress(Exception):
            try:
                self.fs.put_file(str(scratch), self.path(name), mode="create")
            except OSError as error:
                _KEEPS_CONDITIONS[self._bucket()] = is_taken(error)

    def _put(self, scratch: Path, name: str) -> bool:
        for pause_s in (*_PAUSES_S, None):
            if not self._keeps_conditions() and self.exists(name):
                return False
            try:
                self.fs.put_file(str(scratch), self.path(name), mode="create")
            except Exception as error:
                if is_taken(error) or self.exists(name):
                    return False
                if has_no_conditions(error):
                    self.fs.put_file(str(scratch), self.path(name))
                    return True
                if not may_pass(error) or pause_s is None:
                    raise
                time.sleep(pause_s)
            else:
                self._prove_conditions(scratch, name)
                return True
        raise AssertionError("the last turn returns or raises")


_KEEPS_CONDITIONS: dict[str, bool] = {}
"""Bucket → whether it has refused to replace a file that was to be new. One that has not may ignore conditions."""
