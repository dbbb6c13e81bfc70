"""The ledger tells what committed files count, and never instead of a file that it does not fit."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset import failpoints
from nemo_llm_stage.dataset.account import Account, read_account, tidy_ledger
from nemo_llm_stage.dataset.file_stat import FileStat
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.ledger import Entry, LedgerWriter, ledger_folder, read_ledger, take_back
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import RunError

SCHEMA = pa.schema([("a", pa.int64()), ("a_error", pa.string())])
JOB = "job"


@pytest.fixture(params=["parquet", "jsonl"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> OutputFolder:
    """Two committed files, of which the ledger tells."""
    output = OutputFolder(str(tmp_path / "out"), request.param)
    output.check_writable()
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, number) for number in range(2)])
    return output


def commit(output: OutputFolder, number: int, *, num_rows: int = 2, job_id: str = JOB, replaces: bool = False) -> Entry:
    name, counters = f"part-{number:08}.{output.format}", Counters(num_rows=num_rows, num_failed=1, errors={"x": 1})
    with output.writer(SCHEMA, job_id) as writer:
        writer.write(pa.table([list(range(num_rows)), [None] * num_rows], schema=SCHEMA))
        if replaces:
            writer.replace(name, counters)
        else:
            writer.commit(name, counters)
        assert writer.stat is not None
        return Entry(name, job_id, writer.stat, counters)


def ledger_lines(output: OutputFolder) -> list[bytes]:
    folder = ledger_folder(output.state)
    return [line for name in sorted(folder.names()) for line in folder.read(name).splitlines()]


def write_lines(output: OutputFolder, lines: list[bytes], name: str = "0000000000000000009-x.jsonl") -> None:
    folder = ledger_folder(output.state)
    folder.remove_all(folder.names())
    Path(folder.path(name)).write_bytes(b"".join(line + b"\n" for line in lines))


def assert_two_files_of_two_rows(account: Account, *, opened: int) -> None:
    assert (account.counters().num_rows, account.counters().num_failed, len(account.entries)) == (4, 2, 2)
    assert (len(account.opened), account.damaged) == (opened, {})


def test_files_that_the_ledger_tells_of_are_not_opened(output: OutputFolder) -> None:
    """Their counts are those that they were committed with."""
    account = read_account(output, JOB)
    assert_two_files_of_two_rows(account, opened=0)
    assert account.counters_of(f"part-00000001.{output.format}").errors == {"x": 1}
    assert read_account(output, JOB).new_entries == []


def test_a_file_that_was_never_appended_is_opened(output: OutputFolder) -> None:
    """As where the driver died between commit and append; the ledger is told of it then."""
    commit(output, 2)
    account = read_account(output, JOB)
    assert account.opened == {f"part-00000002.{output.format}"}
    assert account.counters().num_rows == 6
    with LedgerWriter(output.state) as ledger:
        ledger.add(account.new_entries)
    assert read_account(output, JOB).opened == frozenset()


def test_an_entry_without_a_file_counts_nothing(output: OutputFolder) -> None:
    """The file is the truth."""
    output.folder.remove(f"part-00000001.{output.format}")
    assert read_account(output, JOB).counters().num_rows == 2


@pytest.mark.parametrize("num_rows", [2, 3])
def test_a_file_that_was_replaced_is_opened(output: OutputFolder, num_rows: int) -> None:
    """Also by one of the same size."""
    commit(output, 1, num_rows=num_rows, replaces=True)
    account = read_account(output, JOB)
    assert account.opened == {f"part-00000001.{output.format}"}
    assert account.counters().num_rows == 2 + num_rows


def test_a_file_of_another_job_is_left_out(output: OutputFolder) -> None:
    """Whatever the ledger tells of it."""
    entry = commit(output, 2, job_id="before")
    with LedgerWriter(output.state) as ledger:
        ledger.add([entry])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=1)


def test_a_damaged_file_is_told(output: OutputFolder) -> None:
    """If the ledger does not fit it."""
    name = f"part-00000001.{output.format}"
    if output.format == "jsonl":
        output.state.replace_bytes(b"{", f"commits/{name}.json", scratch_sub="tmp")
    Path(output.folder.path(name)).write_bytes(b"damaged")
    account = read_account(output, JOB)
    assert set(account.damaged) == {name}
    with pytest.raises(RunError, match="Remove the file and run the job again"):
        account.raise_damage()


@pytest.mark.parametrize("place", range(0, 60, 7))
def test_a_damaged_line_tells_nothing(output: OutputFolder, place: int) -> None:
    """Its file is opened."""
    first, second = ledger_lines(output)
    write_lines(output, [first, second[:place] + bytes([second[place] ^ 1]) + second[place + 1 :]])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=1)


def test_a_torn_line_costs_only_itself(output: OutputFolder) -> None:
    """A dead driver's last; the next one has a file of its own."""
    first, second = ledger_lines(output)
    write_lines(output, [first, second[:-9]])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=1)


def test_a_line_of_a_later_version_tells_nothing(output: OutputFolder) -> None:
    """Its file is opened."""
    first, second = ledger_lines(output)
    body = second[9:].replace(b'"v":1', b'"v":2')
    write_lines(output, [first, b"%08x %b" % (zlib.crc32(body), body)])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=1)


def test_what_is_taken_back_is_void_until_it_is_told_anew(output: OutputFolder) -> None:
    """Also where the clock of the one before was ahead."""
    write_lines(output, ledger_lines(output), "9000000000000000000-x.jsonl")
    name = f"part-00000001.{output.format}"
    take_back(output.state, [name])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=1)
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, 1, replaces=True)])
    assert_two_files_of_two_rows(read_account(output, JOB), opened=0)


def test_a_ledger_in_several_files_becomes_one(output: OutputFolder) -> None:
    """Which tells the same; one that is whole is left alone."""
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, 1, replaces=True)])
    tidy_ledger(output, read_account(output, JOB))
    names = ledger_folder(output.state).names()
    assert len(names) == 1
    tidy_ledger(output, read_account(output, JOB))
    assert ledger_folder(output.state).names() == names
    assert_two_files_of_two_rows(read_account(output, JOB), opened=0)


class Death(BaseException):
    """As good as a kill: nothing after it is done."""


@pytest.mark.parametrize("place", ["ledger.before_rewrite", "ledger.between_rewrite", "ledger.after_rewrite"])
def test_whoever_dies_while_it_becomes_one_loses_nothing(output: OutputFolder, place: str) -> None:
    """The old files go only when the new one is there."""
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, 1, replaces=True)])

    def die(name: str) -> None:
        if name == place:
            raise Death

    failpoints.listen(die)
    try:
        with pytest.raises(Death):
            tidy_ledger(output, read_account(output, JOB))
    finally:
        failpoints.listen(None)
    assert_two_files_of_two_rows(read_account(output, JOB), opened=0)


def entries(num: int) -> list[Entry]:
    return [
        Entry(f"part-{number:08}.parquet", JOB, FileStat(number), Counters(num_rows=number)) for number in range(num)
    ]


def test_segments_of_a_store_are_put_together(tmp_path: Path) -> None:
    """Each 64; nothing is lost on the way, and the newest entry of a file counts."""
    state = Folder(f"memory://{tmp_path.name}/state")
    put: list[str] = []
    failpoints.listen(put.append)
    try:
        with LedgerWriter(state, flush_interval_s=0.0001) as ledger:
            for entry in entries(150):
                before = put.count("ledger.after_put")
                ledger.add([entry])
                while put.count("ledger.after_put") == before:
                    os.sched_yield()
    finally:
        failpoints.listen(None)
    found = read_ledger(state)
    assert len(found.files) == 2 + 150 % 64
    assert list(found.entries.values()) == entries(150)


def test_an_s3_store_keeps_a_ledger(make_bucket: Callable[..., str]) -> None:
    """And removes many files in one call."""
    output = OutputFolder(f"{make_bucket()}/out")
    output.check_writable()
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, 0)])
    with LedgerWriter(output.state) as ledger:
        ledger.add([commit(output, 1)])
    account = read_account(output, JOB)
    assert_two_files_of_two_rows(account, opened=0)
    assert len(account.ledger.files) == 2
    tidy_ledger(output, account)
    account = read_account(output, JOB)
    assert len(account.ledger.files) == 1
    assert_two_files_of_two_rows(account, opened=0)


def test_a_ledger_that_cannot_be_written_stops_nothing(output: OutputFolder, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once; the files are read later."""
    ledger = LedgerWriter(output.state)
    folder = ledger_folder(output.state)
    folder.remove_all(folder.names())
    Path(folder.root).rmdir()
    Path(folder.root).write_bytes(b"in the way")
    with ledger:
        ledger.add([commit(output, 2)])
        ledger.add([commit(output, 3)])
    assert caplog.text.count("a later run reads the files") == 1
    Path(folder.root).unlink()
    assert len(read_account(output, JOB).opened) == 4
