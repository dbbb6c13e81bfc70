"""
Images of a row become content parts of its last user turn.

Bytes and local files travel inside the request as ``data:`` URLs, their media type read from their first bytes; what
is not an image is refused, so a row cannot have another file sent. Remote URLs are passed on only where allowed.
Reads local files; opens no connection.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import PromptError
from nemo_llm_stage.prompt.conversation import check_url_allowed
from nemo_llm_stage.prompt.nulls import is_null

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""The default cap. Source: OpenAI's limit per image; vLLM has none."""

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def image_parts(column: str, value: Any, *, allow_remote_urls: bool, max_image_bytes: int) -> list[dict[str, Any]]:
    """
    Return one ``image_url`` part for each image in `value`.

    Args:
        column: Its name, for messages to the user.
        value: Bytes, a local path, a URL, a ``{"bytes", "path"}`` struct as Hugging Face datasets write it, or a list
            of these; nulls in the list are left out.
        allow_remote_urls: Whether http(s) URLs are passed on, for the server to fetch.
        max_image_bytes: The largest image.

    Raises:
        PromptError: It is none of these, no image, too large, or a URL that is not allowed.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    images = value if isinstance(value, list | tuple) else [value]
    urls = [_url_of(column, image, allow_remote_urls, max_image_bytes) for image in images if not is_null(image)]
    return [{"type": "image_url", "image_url": {"url": url}} for url in urls]


def attach_images(messages: list[Message], parts: list[dict[str, Any]]) -> None:
    """
    Put `parts` before the text of the last user turn, in place.

    Raises:
        PromptError: There is no user turn.
    """
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            message["content"] = parts + ([{"type": "text", "text": content}] if isinstance(content, str) else content)
            return
    raise PromptError("there is no user turn to attach images to.")


def _url_of(column: str, value: Any, allow_remote_urls: bool, max_image_bytes: int) -> str:
    if isinstance(value, Mapping):
        value = value.get("path") if is_null(value.get("bytes")) else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return _data_url(column, bytes(value), max_image_bytes)
    if not isinstance(value, str):
        raise PromptError(f"column {column!r} holds {type(value).__name__}, not an image's bytes, path or URL.")
    if value.startswith("data:image/"):
        if len(value) * 3 // 4 > max_image_bytes:
            raise PromptError(f"column {column!r} holds an image over the limit of {max_image_bytes} bytes.")
        return value
    if "://" in value and not value.startswith("file://"):
        check_url_allowed(column, value, allow_remote_urls=allow_remote_urls)
        return value
    return _data_url(column, _read(column, Path(value.removeprefix("file://")), max_image_bytes), max_image_bytes)


def _read(column: str, path: Path, max_image_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(max_image_bytes + 1)
    except (OSError, ValueError) as error:
        raise PromptError(f"column {column!r} names an image that cannot be read: {error}") from error


def _data_url(column: str, image: bytes, max_image_bytes: int) -> str:
    media_type = _media_type(column, image)
    if len(image) > max_image_bytes:
        raise PromptError(f"column {column!r} holds an image over the limit of {max_image_bytes} bytes.")
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def _media_type(column: str, image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    for magic, media_type in _MAGIC:
        if image.startswith(magic):
            return media_type
    raise PromptError(f"column {column!r} holds bytes that are no PNG, JPEG, GIF, WebP, BMP or TIFF image.")
