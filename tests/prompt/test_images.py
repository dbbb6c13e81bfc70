"""Images of a row in its messages."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from nemo_llm_stage.errors import PromptError, SkippedError
from nemo_llm_stage.prompt import Prompt

PNG = b"\x89PNG\r\n\x1a\n" + b"\x00" * 16
PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def urls_of(prompt: Prompt, value: object) -> list[str]:
    content = prompt.render({"image": value})[-1]["content"]
    if isinstance(content, str):
        return []
    assert content[-1] == {"type": "text", "text": "Describe."}
    return [part["image_url"]["url"] for part in content[:-1]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (PNG, [PNG_URL]),
        ({"bytes": PNG, "path": None}, [PNG_URL]),
        ([PNG, None, PNG], [PNG_URL, PNG_URL]),
        (np.array([PNG], dtype=object), [PNG_URL]),
        (PNG_URL, [PNG_URL]),
        ([], []),
    ],
)
def test_images_travel_as_data_urls_before_the_text(value: object, expected: list[str]) -> None:
    """Bytes, Hugging Face structs, lists of them and data URLs."""
    assert expected == urls_of(Prompt("Describe.", images="image"), value)


@pytest.mark.parametrize(
    ("image", "media_type"),
    [
        (b"\xff\xd8\xff\xe0" + b"0" * 9, "image/jpeg"),
        (b"GIF89a" + b"0" * 9, "image/gif"),
        (b"RIFF0000WEBPVP8 ", "image/webp"),
        (b"BM" + struct.pack("<IIII", 70, 0, 54, 40) + b"0" * 9, "image/bmp"),
        (b"II*\x00" + struct.pack("<I", 8) + b"0" * 9, "image/tiff"),
        (b"MM\x00*" + struct.pack(">I", 8) + b"0" * 9, "image/tiff"),
    ],
)
def test_the_media_type_is_read_from_the_bytes(image: bytes, media_type: str) -> None:
    """Not from a name."""
    assert urls_of(Prompt("Describe.", images=["image"]), image)[0].startswith(f"data:{media_type};base64,")


def test_local_paths_are_read(tmp_path: Path) -> None:
    """As a path, relative or not, a file URL or a struct's path."""
    (path := tmp_path / "a b.bin").write_bytes(PNG)
    prompt = Prompt("Describe.", images="image", images_root=tmp_path)
    for value in (str(path), "a b.bin", path.as_uri(), {"bytes": None, "path": str(path)}):
        assert urls_of(prompt, value) == [PNG_URL]


def test_no_file_is_read_without_a_folder(tmp_path: Path) -> None:
    """A row that names one fails and says what to set."""
    (path := tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(PromptError, match="set images_root"):
        Prompt("Describe.", images="image").render({"image": str(path)})


def test_no_file_outside_the_folder_is_read(tmp_path: Path) -> None:
    """Neither by its path, nor by .., nor through a symbolic link."""
    (tmp_path / "secret.png").write_bytes(PNG)
    (root := tmp_path / "images").mkdir()
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2" / "a.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    prompt = Prompt("Describe.", images="image", images_root=root)
    for value in (str(tmp_path / "secret.png"), "../secret.png", "link.png", "../images2/a.png", "file:///etc/passwd"):
        with pytest.raises(PromptError, match="outside images_root"):
            prompt.render({"image": value})


def test_a_prompt_tells_whether_it_reads_files(tmp_path: Path) -> None:
    """Then it is rendered in a thread."""
    assert Prompt("Describe.", images="image", images_root=tmp_path).reads_files
    assert not Prompt("Describe.", images="image").reads_files
    assert not Prompt("Describe.", images_root=tmp_path).reads_files


def test_a_folder_behind_a_link_is_a_folder(tmp_path: Path) -> None:
    """Data sets are often reached through one."""
    (real := tmp_path / "real").mkdir()
    (real / "a.png").write_bytes(PNG)
    (tmp_path / "link").symlink_to(real)
    assert urls_of(Prompt("Describe.", images="image", images_root=tmp_path / "link"), "a.png") == [PNG_URL]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe would wait for ever, a device never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    prompt = Prompt("Describe.", images="image", images_root=tmp_path)
    for name in ("pipe", "folder", ""):
        with pytest.raises(PromptError, match="cannot be read"):
            prompt.render({"image": name})
    with pytest.raises(PromptError, match="no regular file"):
        Prompt("Describe.", images="image", images_root="/dev").render({"image": "/dev/zero"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"root:x:0:0", "no PNG, JPEG"),
        (b"BMW is a car maker, and this is a text", "no PNG, JPEG"),
        (b"GIF8 is no format", "no PNG, JPEG"),
        ("/etc/passwd", "no PNG, JPEG"),
        ("/no/such/file.png", "cannot be read"),
        ("x\0y", "cannot be read"),
        ("https://127.0.0.1/x.png", "allow_remote_urls"),
        ("s3://bucket/x.png", "neither a data: nor an http"),
        (5, "holds int"),
        (PNG + b"0" * 100, "over the limit of 100 bytes"),
        ("data:image/png;base64," + "A" * 400, "over the limit of 100 bytes"),
    ],
)
def test_what_is_no_image_that_may_be_sent_fails_the_row(value: object, message: str) -> None:
    """No other file can be had this way, and no URL fetched unasked."""
    with pytest.raises(PromptError, match=message):
        Prompt("Describe.", images="image", images_root="/", max_image_bytes=100).render({"image": value})


def test_remote_urls_are_passed_on_where_allowed() -> None:
    """The server fetches them, not the client."""
    prompt = Prompt("Describe.", images="image", allow_remote_urls=True)
    assert urls_of(prompt, "https://127.0.0.1/x.png") == ["https://127.0.0.1/x.png"]


def test_a_row_without_its_image_follows_on_null() -> None:
    """Skipped, or asked without one."""
    with pytest.raises(SkippedError, match="column 'image' is null"):
        Prompt("Describe.", images="image").render({"image": None})
    messages = Prompt("Describe.", images="image", on_null="empty").render({"image": None})
    assert messages == [{"role": "user", "content": "Describe."}]


def test_several_image_columns_keep_their_order() -> None:
    """The first column's image comes first."""
    prompt = Prompt("Which?", images=["a", "b"])
    content = prompt.render({"a": b"GIF89a" + b"0" * 9, "b": PNG})[0]["content"]
    kinds = [part["image_url"]["url"][:14] if "image_url" in part else part["text"] for part in content]
    assert kinds == ["data:image/gif", "data:image/png", "Which?"]
