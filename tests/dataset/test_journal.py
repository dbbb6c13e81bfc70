"""Every answer is on the disk as it comes; a damaged line costs that answer only."""

from __future__ import annotations

import logging
import resource
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset import journal as journal_module
from nemo_llm_stage.dataset.journal import JournalStatistics
from nemo_llm_stage.dataset.journal_format import VERSION, decode, encode_line, read_line
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError, RunError

Journal = partial(journal_module.Journal, flush_interval_s=2.0)

FULL = Completion(
    texts=("a\nb", "ü"),
    finish_reasons=("stop", None),
    reasoning=(None, "why"),
    usage=Usage(1, 2, None),
    model="m",
    endpoint="http://x/v1",
    attempts=3,
    latency_s=0.5,
    logprobs=({"content": []}, None),
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "journal" / "part-0"))


def test_an_answer_survives_its_writer(folder: Folder) -> None:
    """Nobody closed the first journal."""
    Journal(folder).put("k", FULL)
    journal = Journal(folder)
    assert journal.get("k") == FULL


def test_an_answer_is_handed_out_once(folder: Folder) -> None:
    """Two rows that ask the same get answers of their own."""
    first = Journal(folder)
    first.put("k", Completion(texts=("one",)))
    first.put("k", Completion(texts=("two",)))
    journal = Journal(folder)
    assert [journal.get("k"), journal.get("k"), journal.get("k")] == [
        Completion(texts=("one",)),
        Completion(texts=("two",)),
        None,
    ]


def test_answers_of_several_attempts_are_all_found(folder: Folder) -> None:
    """Each attempt writes a file of its own; so do raw answers that were kept."""
    kept = Folder(f"{folder.url}-kept")
    Journal(folder).put("a", FULL)
    Journal(folder).put("b", FULL)
    Journal(kept).put("c", FULL)
    journal = Journal(folder, kept)
    assert [journal.get(key) is not None for key in "abc"] == [True, True, True]


def test_answers_are_removed_or_kept_once_committed(folder: Folder) -> None:
    """Those of all attempts."""
    kept = Folder(f"{folder.url}-kept")
    for keep in (True, False):
        Journal(folder, kept).put("a", FULL)
        journal = Journal(folder, kept)
        journal.put("b", FULL)
        journal.retire(keep=keep)
        assert folder.names() == set()
        assert len(kept.names()) == 2


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_costs_only_the_lines_it_touches(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any byte flipped, or the file cut anywhere."""
    lines = [encode_line(f"k{i}", Completion(texts=(f"text {i}",))) for i in range(5)]
    whole = b"".join(lines)
    content = bytearray(whole)
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    folder = Folder(str(tmp_path_factory.mktemp("journal")))
    Path(folder.path("p.x.jsonl")).write_bytes(content)
    logging.disable(logging.WARNING)
    journal = Journal(folder)
    logging.disable(logging.NOTSET)
    start = 0
    for i, line in enumerate(lines):
        end = start + len(line)
        is_touched = start <= position < end or (position == start - 1 and whole[position] == ord("\n"))
        if not is_touched and end <= len(content):
            assert journal.get(f"k{i}") == Completion(texts=(f"text {i}",))
        else:
            assert journal.get(f"k{i}") in (None, Completion(texts=(f"text {i}",)))
        start = end


def test_torn_lines_are_told(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """The warning says how many rows are sent again."""
    folder.make()
    Path(folder.path("p.x.jsonl")).write_bytes(encode_line("a", FULL) + encode_line("b", FULL)[:-9])
    Journal(folder)
    assert "1 torn or corrupt line(s)" in caplog.text


def test_a_line_holds_every_field() -> None:
    """What is read back equals what was written."""
    body = read_line(encode_line("k", FULL).rstrip(b"\n"))
    assert body is not None
    assert decode(body) == FULL


def test_a_choice_without_an_answer_keeps_its_error() -> None:
    """So that the next run knows it as this one did."""
    completion = replace(FULL, texts=("", "x"), choice_errors=("content_filter: no", None))
    body = read_line(encode_line("k", completion).rstrip(b"\n"))
    assert body is not None
    assert decode(body) == completion


def old_line(**odd: Any) -> bytes:
    """A line of an earlier version, which kept what a server had sent as it was."""
    plain = {"k": "k", "t": ["x"], "f": ["stop"], "r": [None], "u": [1, 2, None]}
    return orjson.dumps({**plain, "m": "m", "e": "e", "a": 1, "s": 0.5, "p": [], **odd})


@pytest.mark.parametrize(
    ("odd", "changes"),
    [
        ({"m": {}}, {"model": None}),
        ({"m": []}, {"model": None}),
        ({"u": ["3", 2, "a"]}, {"usage": Usage(None, 2, None)}),
        ({"u": [True, [1], 1 << 63]}, {"usage": None}),
        ({"u": "3"}, {"usage": None}),
        ({"f": [{"type": "stop"}]}, {"finish_reasons": (None,)}),
        ({"f": 5}, {"finish_reasons": ()}),
        ({"f": ["stop", "stop"]}, {"finish_reasons": ()}),
        ({"r": [[{"text": "so"}]]}, {"reasoning": (None,)}),
        ({"s": "fast", "a": None, "e": 5}, {"latency_s": None, "endpoint": None}),
        ({"p": [5]}, {"logprobs": (None,)}),
    ],
    ids=str,
)
def test_a_field_of_an_old_line_has_its_type(odd: dict[str, Any], changes: dict[str, Any]) -> None:
    """The answer is paid for; only the odd field is lost."""
    plain = Completion(("x",), ("stop",), (None,), Usage(1, 2, None), "m", "e", 1, 0.5)
    assert decode(old_line(**odd)) == replace(plain, **changes)


@pytest.mark.parametrize("texts", [None, [], "x", [5], [None], {}], ids=str)
def test_a_line_without_an_answer_is_passed_over(folder: Folder, texts: Any) -> None:
    """Its row gets the next one."""
    folder.make()
    body = old_line(t=texts)
    line = b"%08x %b\n" % (zlib.crc32(body), body)
    Path(folder.path("p.x.jsonl")).write_bytes(line + encode_line("k", FULL))
    journal = Journal(folder)
    assert (journal.get("k"), journal.get("k")) == (FULL, None)


@pytest.mark.parametrize("body", [b"5", b"[]", b"{}", b'{"k": 5}', b"no json"])
def test_a_sound_line_of_something_else_is_told(folder: Folder, caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    """A file that is no journal does not end the run."""
    folder.make()
    Path(folder.path(f"p.{zlib.crc32(body)}.jsonl")).write_bytes(b"%08x %b\n" % (zlib.crc32(body), body))
    assert Journal(folder).statistics().num_loaded == 0
    assert "1 torn or corrupt line(s)" in caplog.text


@pytest.mark.parametrize(
    "odd",
    [{"texts": ("a\ud800",)}, {"model": object()}, {"logprobs": ({"a": "\ud800"},)}, {"usage": Usage(1 << 70)}],
    ids=["text", "model", "logprobs", "usage"],
)
def test_an_answer_that_json_cannot_hold_is_kept_without_the_odd_field(folder: Folder, odd: dict[str, Any]) -> None:
    """A client of the user's may return anything; one answer does not end the job."""
    Journal(folder).put("k", replace(Completion(("a?",), ("stop",), (None,)), **odd))
    completion = Journal(folder).get("k")
    assert completion is not None
    assert (completion.texts, completion.finish_reasons) == (("a?",), ("stop",))


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_answers_of_ended_attempts_come_first(scheme: str, tmp_path: Path) -> None:
    """What was called off, though begun later, has perhaps a row's first answer and not the one that hangs on it."""
    folder = Folder(f"{scheme}{tmp_path}/journal")
    attempts = []
    for text in ("first", "second", "called off"):
        journal = Journal(folder)
        journal.put("k", Completion((text,)))
        journal.close()
        attempts.append(journal.attempt)
    journal = Journal(folder, expected=[attempts[1], attempts[0]])
    found = [completion.texts[0] for _ in range(3) if (completion := journal.get("k")) is not None]
    assert found == ["second", "first", "called off"]
    journal.close()


def test_an_object_store_gets_segments(tmp_path: Path) -> None:
    """Closing writes out what is left."""
    folder = Folder(f"memory://{tmp_path.name}/journal")
    journal = Journal(folder, flush_interval_s=3600)
    journal.put("a", FULL)
    journal.put("b", FULL)
    journal.close()
    assert len(folder.names()) == 1
    again = Journal(folder)
    assert again.get("b") == FULL
    again.retire(keep=False)
    assert folder.names() == set()


def test_a_full_disk_stops_the_run_with_advice(tmp_path: Path) -> None:
    """/dev/full takes no byte."""
    folder = Folder(str(tmp_path))
    journal = Journal(folder)
    journal.put("a", FULL)
    path = tmp_path / next(iter(folder.names()))
    journal.close()
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"No space left on device.*run the same command again"):
        journal.put("b", FULL)


@contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """As on a disk that has room for so much: the write that does not fit is cut, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_half_a_line_does_not_spoil_the_next_one(folder: Folder) -> None:
    """Where the disk was full in the middle of a line, and had room again right after."""
    journal = Journal(folder)
    journal.put("a", FULL)
    with (
        files_no_longer_than(len(encode_line("a", FULL)) + 10),
        pytest.raises(RunError, match="run the same command again"),
    ):
        journal.put("b", FULL)
    journal.put("c", FULL)
    again = Journal(folder)
    assert [again.get(key) is not None for key in "abc"] == [True, False, True]


@pytest.mark.parametrize("error", [OSError("store gone"), RuntimeError("library broken")])
def test_a_store_that_fails_stops_the_run(tmp_path: Path, error: Exception) -> None:
    """At the next answer; what was not stored is stored once that works again."""
    folder = Folder(f"memory://{tmp_path.name}/journal")
    failing = threading.Event()
    failing.set()
    tries = threading.Semaphore(0)

    def fail(name: str) -> None:
        if name == "journal.before_put":
            tries.release()
            if failing.is_set():
                raise error

    failpoints.listen(fail)
    journal = Journal(folder, flush_interval_s=0.001)
    journal.put("a", FULL)
    for _ in range(2):  # at the second try, the failure of the first is known
        tries.acquire()
    with pytest.raises(RunError, match=str(error)):
        journal.put("b", FULL)
    failing.clear()
    journal.close()
    failpoints.listen(None)
    assert Journal(folder).get("a") == FULL


def test_answers_put_while_a_segment_is_sent_are_kept(tmp_path: Path) -> None:
    """The flush takes what is there and leaves what comes."""
    folder = Folder(f"memory://{tmp_path.name}/journal")
    journal = Journal(folder, flush_interval_s=0.0001)
    for number in range(2000):
        journal.put(str(number), Completion(texts=(str(number),)))
    journal.close()
    again = Journal(folder)
    assert all(again.get(str(number)) is not None for number in range(2000))


def test_a_journal_of_a_newer_format_is_refused(folder: Folder) -> None:
    """Rather than misread; the message names the file and says what to do."""
    folder.make()
    body = b'{"v":%d,"k":"a"}' % (VERSION + 1)
    Path(folder.path("p.x.jsonl")).write_bytes(b"%08x %b\n" % (zlib.crc32(body), body))
    with pytest.raises(OutputConflictError, match=r"p\.x\.jsonl: a newer version .* Go on with that version"):
        Journal(folder)


def test_lines_without_a_version_are_of_the_first(folder: Folder) -> None:
    """As 0.1.0 wrote them."""
    line = read_line(encode_line("a", FULL).rstrip(b"\n"))
    assert line is not None
    entry = orjson.loads(line)
    del entry["v"]
    body = orjson.dumps(entry)
    folder.make()
    Path(folder.path("p.x.jsonl")).write_bytes(b"%08x %b\n" % (zlib.crc32(body), body))
    assert Journal(folder).get("a") == FULL


def test_a_journal_tells_how_it_stands(folder: Folder) -> None:
    """Answers found, left and written."""
    Journal(folder).put("a", FULL)
    Path(folder.path("p.x.jsonl")).write_bytes(b"torn")
    journal = Journal(folder)
    journal.put("b", FULL)
    assert journal.statistics() == JournalStatistics(num_loaded=1, num_left=1, num_torn=1, num_written=1)
    journal.get("a")
    assert journal.statistics().num_left == 0


@pytest.mark.parametrize("keep", [False, True])
def test_the_journal_of_another_worker_stays(folder: Folder, keep: bool) -> None:
    """It began after this one had read what was there: its answers may be in no committed file."""
    late = Journal(folder, Folder(f"{folder.url}-kept"))
    late.put("a", FULL)
    other = Journal(folder)
    other.put("b", FULL)
    late.retire(keep=keep)
    assert folder.names() == {f"{other.attempt}.jsonl"}
    assert Journal(folder).get("b") == FULL
