"""Answers of all partitions of a worker in few objects: none is lost, whenever the worker dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nemo_llm_stage.core import Completion
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.gather import gather, gather_all, remove_streams
from nemo_llm_stage.dataset.journal import Journal
from nemo_llm_stage.dataset.journal_stream import MAX_SMALL, JournalStream, worker_folder
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import RunError


@pytest.fixture(params=["memory", "s3"])
def state(tmp_path: Path, request: pytest.FixtureRequest) -> Folder:
    if request.param == "memory":
        return Folder(f"memory://{tmp_path.name}/state")
    make_bucket: Callable[..., str] = request.getfixturevalue("make_bucket")
    return Folder(f"{make_bucket()}/state")


@contextmanager
def listening(hook: failpoints.Hook) -> Iterator[None]:
    failpoints.listen(hook)
    try:
        yield
    finally:
        failpoints.listen(None)


def stream_of(state: Folder, flush_interval_s: float = 3600) -> JournalStream:
    return JournalStream(worker_folder(state, 0), flush_interval_s)


def journal_of(state: Folder, number: int, stream: JournalStream | None = None, **options: bool) -> Journal:
    folder = Folder(f"{state.url}/journal/part-{number:08}")
    return Journal(folder, flush_interval_s=3600, stream=stream, **options)


def answer(text: str) -> Completion:
    return Completion(texts=(text,))


def segments(state: Folder) -> set[str]:
    return worker_folder(state, 0).names()


def test_answers_of_many_partitions_share_an_object(state: Folder) -> None:
    """Whoever runs the partitions next finds them."""
    stream = stream_of(state)
    for number in range(5):
        journal_of(state, number, stream).put(f"key {number}", answer(f"text {number}"))
    stream.flush()
    assert len(segments(state)) == 1
    gather_all(state, {f"part-{number:08}" for number in range(4)})
    assert segments(state) == set()
    found = [journal_of(state, number).get(f"key {number}") for number in range(5)]
    assert [None if one is None else one.texts[0] for one in found] == [
        *(f"text {number}" for number in range(4)),
        None,
    ]


def test_answers_of_a_committed_partition_are_not_put(state: Folder) -> None:
    """Those that are still in memory."""
    places: list[str] = []
    stream = stream_of(state)
    with listening(places.append):
        journal = journal_of(state, 0, stream, is_fresh=True)
        journal.put("key", answer("text"))
        journal.retire(keep=False)
        stream.flush()
    assert "stream.before_put" not in places
    assert segments(state) == set()


def test_an_object_goes_when_no_partition_needs_it(state: Folder) -> None:
    """Not before."""
    removed = threading.Event()
    stream = stream_of(state, 0.01)
    first, second = (journal_of(state, number, stream, is_fresh=True) for number in range(2))
    first.put("key", answer("text"))
    second.put("key", answer("text"))
    stream.flush()
    first.retire(keep=False)
    stream.flush()
    assert len(segments(state)) >= 1
    with listening(lambda name: removed.set() if name == "stream.after_remove" else None):
        second.retire(keep=False)
        third = journal_of(state, 2, stream, is_fresh=True)
        third.put("key", answer("text"))  # the thread that removes may have ended
        assert removed.wait(30)
    stream.flush()
    gather(state, 0)
    assert journal_of(state, 2).get("key") == answer("text")
    assert journal_of(state, 0).get("key") is None


def test_shared_answers_are_found_by_another_worker(state: Folder) -> None:
    """Those in objects and those in memory, once each."""
    stream = stream_of(state)
    journal = journal_of(state, 0, stream)
    journal.put("a", answer("first"))
    stream.flush()
    journal.put("b", answer("second"))
    journal.share()
    other = journal_of(state, 0)
    assert other.statistics().num_loaded == 2
    assert (other.get("a"), other.get("b")) == (answer("first"), answer("second"))


def test_small_objects_are_put_together(state: Folder) -> None:
    """A slow partition does not leave one for each interval; no answer is lost."""
    merged = threading.Event()
    stream = stream_of(state, 0.01)
    journal = journal_of(state, 0, stream)
    with listening(lambda name: merged.set() if name == "stream.after_merge" else None):
        number = 0
        while not merged.is_set():
            journal.put(f"key {number}", answer(str(number)))
            stream.flush()
            number += 1
    stream.flush()
    assert number >= MAX_SMALL - 1
    gather(state, 0)
    other = journal_of(state, 0)
    assert other.statistics().num_loaded == number
    assert all(other.get(f"key {index}") == answer(str(index)) for index in range(number))


class Death(BaseException):
    """As good as a kill: nothing after it is done."""


@pytest.mark.parametrize("place", ["gather.before", "gather.between", "gather.after"])
def test_who_dies_while_answers_are_gathered_loses_none(state: Folder, place: str) -> None:
    """And doubles none: the next one gathers again."""
    stream = stream_of(state)
    for key in "ab":
        journal_of(state, 0, stream).put(key, answer(key))
        stream.flush()

    def die(name: str) -> None:
        if name == place:
            raise Death

    with listening(die), pytest.raises(Death):
        gather(state, 0)
    gather(state, 0)
    journal = journal_of(state, 0)
    assert journal.statistics().num_loaded == 2
    assert (journal.get("a"), journal.get("b")) == (answer("a"), answer("b"))


def test_answers_of_a_silent_worker_count_once(state: Folder) -> None:
    """It goes on writing after its answers were gathered, and dies later."""
    stream = stream_of(state)
    journal = journal_of(state, 0, stream)
    journal.put("a", answer("a"))
    stream.flush()
    gather(state, 0, removes=False)
    journal.put("b", answer("b"))
    stream.flush()
    gather(state, 0)
    assert journal_of(state, 0).statistics().num_loaded == 2


def test_a_store_that_fails_is_told_and_what_it_did_not_take_is_kept(state: Folder) -> None:
    """At the next answer."""
    stream = stream_of(state)
    journal = journal_of(state, 0, stream)

    def fail(name: str) -> None:
        if name == "stream.before_put":
            raise OSError("store gone")

    journal.put("a", answer("a"))
    with listening(fail):
        journal.close()
        with pytest.raises(RunError, match="store gone"):
            journal.put("b", answer("b"))
        with pytest.raises(RunError, match="store gone"):
            journal.share()
    journal.close()
    gather(state, 0)
    assert journal_of(state, 0).get("a") == answer("a")


def test_lines_that_are_none_are_passed_over(state: Folder) -> None:
    """Whatever they name."""
    stream = stream_of(state)
    journal_of(state, 0, stream).put("a", answer("a"))
    stream.flush()
    folder = worker_folder(state, 0)
    folder.fs.pipe_file(folder.path("0-x.jsonl"), b"../../etc 1-a x\n\xff\xfe\n\npart-1\npart-1 1-a\n")
    gather(state, 0)
    assert journal_of(state, 0).get("a") == answer("a")


def test_streams_of_a_finished_job_are_removed(state: Folder) -> None:
    """All of them."""
    stream = stream_of(state)
    journal_of(state, 0, stream).put("a", answer("a"))
    stream.flush()
    remove_streams(state)
    assert segments(state) == set()
