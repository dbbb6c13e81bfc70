"""
Objects of an S3 bucket that keeps versions: a job reads the version that it was planned over, whatever comes after.

s3fs takes the version as a part of the path: ``s3://bucket/key?versionId=…``. Knows paths; does not open the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_llm_stage.dataset.storage import open_filesystem

_MARK = "?versionId="
_NUM_THREADS = 64

Info = dict[str, Any]
"""What a filesystem tells of a file."""


def without_version(path: str) -> str:
    """Return the path of an object, whichever version of it `path` names."""
    return path.partition(_MARK)[0]


def versions_in(paths: Sequence[str]) -> dict[str, str]:
    """Return path → version for those of `paths` that name one."""
    return {name: version for name, mark, version in (path.partition(_MARK) for path in paths) if mark}


def pinned(
    fs: Any, prefix: str, infos: Sequence[Info], versions: Mapping[str, str], passed_over: Counter[str]
) -> list[Info]:
    """
    Return files with the version to read in their names; as they are where none is kept.

    Args:
        fs: Where they are.
        prefix: What stands before their paths as users name them.
        infos: The newest.
        versions: Path → the version that is wanted, if there still is one; the newest where there is none.
        passed_over: Newer versions are counted here.
    """
    if not infos or not _keeps_versions(fs, infos[0]["name"].partition("/")[0]):
        return list(infos)
    aware = open_filesystem(f"{prefix}{infos[0]['name']}{_MARK}any")[0]

    def pin(info: Info) -> Info:
        wanted = versions.get(prefix + info["name"])
        try:
            found = aware.info(info["name"] + (_MARK + wanted if wanted else ""), refresh=True)
        except FileNotFoundError:
            found = aware.info(info["name"], refresh=True)
        version = found.get("VersionId")
        return {**found, "name": f"{info['name']}{_MARK}{version}"} if version not in (None, "null") else info

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        found = list(pool.map(pin, infos))
    if num := sum(old["ETag"] != new["ETag"] for old, new in zip(found, infos, strict=True)):
        passed_over["newer than what the job was planned over (--restart or a new output reads these)"] += num
    return found


def _keeps_versions(fs: Any, bucket: str) -> bool:
    if "s3" not in fs.protocol:
        return False
    try:
        return bool(fs.call_s3("get_bucket_versioning", Bucket=bucket).get("Status") == "Enabled")
    except Exception:  # noqa: BLE001 - not everybody may ask, and not every store knows the question
        return False
