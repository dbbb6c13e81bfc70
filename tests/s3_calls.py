"""What a request to an S3 server is, in a word or two, so that requests can be counted. For programs in this folder."""

from __future__ import annotations

from urllib.parse import parse_qs


def kind_of(method: str, path: str, query: str) -> str:
    """Return what is called, and the folder within the bucket that it is called for, up to the second level."""
    fields = parse_qs(query, keep_blank_values=True)
    key = path.strip("/").partition("/")[2]
    if "list-type" in fields:
        method, key = "LIST", fields.get("prefix", [""])[0]
    elif method == "POST" and "delete" in fields:
        method = "DELETE"
    folders = key.split("/")
    return f"{method} {'/'.join(folders[: 2 if len(folders) > 2 else 1])}"
