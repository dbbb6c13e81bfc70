"""
Puts a finished job's output on Hugging Face's hub: the data files, and the card.

The only file that knows huggingface_hub.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nemo_llm_stage.dataset.verify import verify
from nemo_llm_stage.errors import ConfigError, RunError
from nemo_llm_stage.job.record import open_output
from nemo_llm_stage.report.card import CARD, DATA, card
from nemo_llm_stage.text import one_line

FILES_PER_COMMIT = 50
"""Source: huggingface_hub's own advice for commits of large files, https://huggingface.co/docs/hub/storage-limits."""

_TARGET = re.compile(r"(?:hf://)?(?:datasets/)?([\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True, slots=True)
class Upload:
    """
    One file to put on the hub.

    Attributes:
        path: Where it goes in the repository.
        name: Of the data file; None for the card.
        num_bytes: Its size.
    """

    path: str
    name: str | None
    num_bytes: int


def repo_of(target: str) -> str:
    """
    Return ``owner/name`` of ``hf://datasets/owner/name``.

    Raises:
        ConfigError: It is no such address.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ConfigError(f"{target!r} is no data set of the hub; write hf://datasets/OWNER/NAME.")
    return found[1]


def uploads_of(url: str, license_id: str) -> tuple[list[Upload], str]:
    """
    Return what `push` would put on the hub, and the card's text.

    Raises:
        ConfigError: The job is not finished, or something is off.
    """
    output, plan = open_output(url)
    verification = verify(output, plan)
    if not verification.is_complete:
        problem = verification.problems[0] if verification.problems else "the job is not finished; run it again"
        raise ConfigError(f"{url!r} is not pushed: {problem}. See: nemo-llm-stage verify {url}")
    text = card(url, license_id, verification)
    names = sorted(output.committed())
    files = [Upload(f"{DATA}/{name}", name, int(output.folder.fs.size(output.folder.path(name)))) for name in names]
    return [*files, Upload(CARD, None, len(text.encode()))], text


def push(url: str, target: str, license_id: str, *, is_private: bool) -> str:
    """
    Upload the output in `url`, the card last, and return the address of the data set.

    Raises:
        ConfigError: huggingface_hub is not installed, the target is no data set, or the job is not finished.
        RunError: The hub refuses it, or cannot be reached.
    """
    repo = repo_of(target)
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError("push needs huggingface_hub: pip install 'nemo-llm-stage[hf]'.") from None
    uploads, text = uploads_of(url, license_id)
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, repo_type="dataset", private=is_private, exist_ok=True)
        for batch in _batches(uploads):
            _commit(api, repo, url, batch, text)
    except Exception as error:
        raise RunError(f"the hub did not take {url!r}: {one_line(str(error), 500)}") from error
    return str(address)


def _batches(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    rest = iter(uploads)
    while batch := list(islice(rest, FILES_PER_COMMIT)):
        yield batch


def _commit(api: Any, repo: str, url: str, batch: Sequence[Upload], text: str) -> None:
    from huggingface_hub import CommitOperationAdd

    folder = open_output(url)[0].folder
    with ExitStack() as stack:
        operations = []
        for upload in batch:
            content: Any = io.BytesIO(text.encode())
            if upload.name is not None:
                path = folder.path(upload.name)
                content = path if folder.is_local else stack.enter_context(folder.fs.open(path, "rb"))
            operations.append(CommitOperationAdd(upload.path, content))
        message = f"{len(batch)} files of a job of nemo_llm_stage"
        api.create_commit(repo, operations, commit_message=message, repo_type="dataset")
