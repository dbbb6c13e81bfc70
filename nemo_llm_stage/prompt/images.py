"""
Images of a row become content parts of its last user turn.

Bytes and local files travel inside the request as ``data:`` URLs, their media type read from their first bytes; what
is not an image is refused. Files are read only below the folder that the settings name. Remote URLs are passed on only
where allowed. Opens no connection.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_llm_stage.core import Message
from nemo_llm_stage.errors import PromptError
from nemo_llm_stage.prompt.conversation import check_url_allowed
from nemo_llm_stage.prompt.image_files import media_type_of, read_image_file
from nemo_llm_stage.prompt.nulls import is_null

MAX_IMAGE_BYTES = 20 * 1024 * 1024
"""The default cap. Source: OpenAI's limit per image; vLLM has none."""


@dataclass(frozen=True, slots=True)
class ImageRules:
    """
    Which images rows may have sent.

    Attributes:
        allow_remote_urls: Whether http(s) URLs are passed on, for the server to fetch.
        images_root: The folder that local files may lie in; None for no local file.
        max_image_bytes: The largest image.
    """

    allow_remote_urls: bool = False
    images_root: str | None = None
    max_image_bytes: int = MAX_IMAGE_BYTES


def image_parts(column: str, value: Any, rules: ImageRules) -> list[dict[str, Any]]:
    """
    Return one ``image_url`` part for each image in `value`.

    Args:
        column: Its name, for messages to the user.
        value: Bytes, a local path, a URL, a ``{"bytes", "path"}`` struct as Hugging Face datasets write it, or a list
            of these; nulls in the list are left out.
        rules: What may be sent.

    Raises:
        PromptError: It is none of these, no image, too large, or a file or URL that is not allowed.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    images = value if isinstance(value, list | tuple) else [value]
    urls = [_url_of(column, image, rules) for image in images if not is_null(image)]
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


def _url_of(column: str, value: Any, rules: ImageRules) -> str:
    if isinstance(value, Mapping):
        value = value.get("path") if is_null(value.get("bytes")) else value["bytes"]
    if isinstance(value, bytes | bytearray | memoryview):
        return _data_url(column, bytes(value), rules.max_image_bytes)
    if not isinstance(value, str):
        raise PromptError(f"column {column!r} holds {type(value).__name__}, not an image's bytes, path or URL.")
    if value.startswith("data:image/"):
        if len(value) * 3 // 4 > rules.max_image_bytes:
            raise _too_large(column, rules.max_image_bytes)
        return value
    if "://" in value and not value.startswith("file://"):
        check_url_allowed(column, value, allow_remote_urls=rules.allow_remote_urls)
        return value
    image = read_image_file(column, value, rules.images_root, rules.max_image_bytes)
    return _data_url(column, image, rules.max_image_bytes)


def _data_url(column: str, image: bytes, max_image_bytes: int) -> str:
    media_type = media_type_of(image)
    if media_type is None:
        raise PromptError(f"column {column!r} holds bytes that are no PNG, JPEG, GIF, WebP, BMP or TIFF image.")
    if len(image) > max_image_bytes:
        raise _too_large(column, max_image_bytes)
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def _too_large(column: str, max_image_bytes: int) -> PromptError:
    return PromptError(f"column {column!r} holds an image over the limit of {max_image_bytes} bytes.")
