"""
Image files that rows name: which may be read, and what is an image.

A row is data and may name any path. Only regular files below the folder that the settings name are read, after symbolic
links are followed, and only so far as an image may be long.
"""

from __future__ import annotations

import os
import stat
from urllib.parse import unquote, urlsplit

from nemo_llm_stage.errors import PromptError

_DIB_HEADER_BYTES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
"""Sizes of the header after a BMP's first one. Source: Microsoft, "Bitmap Header Types"."""


def read_image_file(column: str, path: str, images_root: str | None, max_image_bytes: int) -> bytes:
    """
    Return the beginning of the file at `path`, at most one byte more than `max_image_bytes`.

    Args:
        column: Its name, for messages to the user.
        path: Below `images_root`, or absolute, or a ``file:`` URL.
        images_root: The folder that files may lie in; None for no file.
        max_image_bytes: The largest image.

    Raises:
        PromptError: The file lies elsewhere, cannot be read, or is a pipe, a device or a folder.
    """
    if images_root is None:
        raise PromptError(
            f"column {column!r} names the file {path!r:.200}; set images_root to the folder of the images."
        )
    if path.startswith("file:"):
        path = unquote(urlsplit(path).path)
    try:
        root = os.path.realpath(images_root)
        real_path = os.path.realpath(os.path.join(root, path))  # noqa: PTH118 - realpath, in the line above too
        if os.path.commonpath([root, real_path]) != root:
            raise PromptError(f"column {column!r} names a file outside images_root: {path!r:.200}")
        return _read(real_path, max_image_bytes)
    except (OSError, ValueError) as error:
        raise PromptError(f"column {column!r} names an image that cannot be read: {error}") from error


def _read(path: str, max_image_bytes: int) -> bytes:
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(number, "rb") as file:  # noqa: PTH123 - a file number has no path
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(f"{path!r} is no regular file")
        return file.read(max_image_bytes + 1)


def media_type_of(image: bytes) -> str | None:
    """Return the media type that the first bytes of `image` tell; None where they are no image's."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff") and image[3:4] >= b"\xc0":
        return "image/jpeg"
    if image.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if image.startswith(b"RIFF") and image[8:15] == b"WEBPVP8":
        return "image/webp"
    if image.startswith(b"BM") and image[6:10] == bytes(4) and _number(image[14:18]) in _DIB_HEADER_BYTES:
        return "image/bmp"
    is_little = image.startswith(b"II*\x00")
    if (is_little or image.startswith(b"MM\x00*")) and 8 <= _number(image[4:8], is_little=is_little) < len(image):
        return "image/tiff"
    return None


def _number(field: bytes, *, is_little: bool = True) -> int:
    return int.from_bytes(field, "little" if is_little else "big")
