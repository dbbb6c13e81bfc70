"""What C code writes to stderr appears above the screen, and the terminal is given back."""

from __future__ import annotations

import os
import pty
import re
import sys

import pytest

PROGRAM = """
import os, sys
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.view import JobTitle
from nemo_llm_stage.worker.engine import RunStatus
with Progress() as progress:
    progress.begin(JobTitle(("x",), ("m",), 10), Counters())
    progress.update(RunStatus(), Counters())
    os.write(2, b"\\x1b[33m(raylet)\\x1b[0m a warn")
    progress.note("a note")
    os.write(2, b"ing of C\\n")
    os.write(2, "\\n".join(f"line {i}" for i in range(50)).encode())
os.write(2, b"as before\\n")
print(os.isatty(2))
"""


def on_a_terminal(program: str) -> str:
    """Return all that a program writes to a terminal of its own."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", program])
    written = b""
    try:
        while data := os.read(terminal, 65536):
            written += data
    except OSError:  # how Linux says that the program has ended
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written
    return written.decode()


@pytest.mark.slow
def test_what_c_code_writes_appears_above_the_screen() -> None:
    """As whole lines without their colours, of many lines the last; the screen's own lines are erased before."""
    written = on_a_terminal(PROGRAM)
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in written.splitlines()]
    assert {"a note", "line 49", "as before", "True"} <= set(plain)
    is_shown = "(raylet) a warning of C" in plain
    assert is_shown or any(re.fullmatch("… 3[01] lines more", line) for line in plain)
    assert not any("nemo-llm-stage" in line and "line 4" in line for line in plain)


LEFT = """
import os, signal, sys, time
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.console import PlainConsole
from nemo_llm_stage.report.progress.progress import Progress
from nemo_llm_stage.report.progress.view import JobTitle
from nemo_llm_stage.worker.engine import RunStatus
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with Progress() as progress:
    progress.begin(JobTitle(("x",), ("m",), 10), Counters())
    os.write(1, b"begun")
    os.read(int(sys.argv[1]), 1)
    for _ in range(3):
        progress.update(RunStatus(), Counters())
        progress.note("a note")
PlainConsole().print("the end")
os.write(int(sys.argv[2]), b"done")
"""


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_nothing() -> None:
    """A job goes on without anybody who looks, as long as SIGHUP does not end it."""
    go_on, done = os.pipe(), os.pipe()
    pid, terminal = pty.fork()
    if not pid:
        for number in (go_on[0], done[1]):
            os.set_inheritable(number, True)
        os.execv(sys.executable, [sys.executable, "-c", LEFT, str(go_on[0]), str(done[1])])
    os.close(done[1])
    while b"begun" not in os.read(terminal, 65536):
        pass
    os.close(terminal)
    os.write(go_on[1], b"x")
    assert os.read(done[0], 4) == b"done"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for number in (*go_on, done[0]):
        os.close(number)
