"""Every answer is on the disk as it comes; a damaged line costs that answer only."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.dataset.journal import Journal, decode, frame, unframe
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import RunError

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
    lines = [frame(f"k{i}", Completion(texts=(f"text {i}",))) for i in range(5)]
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
    """The warning says how many rows are asked again."""
    folder.make()
    Path(folder.path("p.x.jsonl")).write_bytes(frame("a", FULL) + frame("b", FULL)[:-9])
    Journal(folder)
    assert "1 torn or corrupt line(s)" in caplog.text


def test_a_frame_holds_every_field() -> None:
    """What is read back equals what was written."""
    body = unframe(frame("k", FULL).rstrip(b"\n"))
    assert body is not None
    assert decode(body) == FULL


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
