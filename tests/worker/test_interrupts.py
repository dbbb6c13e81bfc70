"""What signals order: first to drain, then to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nemo_llm_stage.worker.interrupts import Interrupts, RunInterrupted
from nemo_llm_stage.worker.orders import NO_ORDERS, Need, Orders


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_and_the_second_stops(signum: signal.Signals) -> None:
    """Whichever of the two it is; the error knows it."""
    with Interrupts(30.0) as interrupts:
        assert (interrupts.is_draining, interrupts.orders_of("0", Need())) == (False, NO_ORDERS)
        send(signum)
        interrupts.check()
        assert (interrupts.is_draining, interrupts.orders_of("0", Need())) == (True, Orders(is_draining=True))
        send(signum)
        with pytest.raises(RunInterrupted) as raised:
            interrupts.check()
    assert raised.value.signum == signum


def test_the_last_fifth_of_the_grace_period_is_for_committing() -> None:
    """After four fifths nothing in flight is waited for."""
    now = 100.0
    with Interrupts(30.0, now=lambda: now) as interrupts:
        send(signal.SIGTERM)
        assert interrupts.seconds_left == 24.0
        now = 123.9
        assert not interrupts.orders_of("0", Need()).is_overdue
        now = 124.0
        assert interrupts.orders_of("0", Need()).is_overdue


def test_handlers_are_put_back() -> None:
    """Also where a library has set one in the meantime, which gets no signal of ours while the run goes on."""
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(30.0) as interrupts:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupts.renew()
        send(signal.SIGTERM)
        assert interrupts.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_third_signal_ends_a_run_that_hangs() -> None:
    """Nobody has looked at the orders in between."""
    with Interrupts(30.0):
        send(signal.SIGINT)
        send(signal.SIGINT)
        with pytest.raises(RunInterrupted):
            send(signal.SIGINT)


def test_another_thread_receives_no_signals() -> None:
    """A job runs there all the same."""
    drains: list[bool] = []

    def run() -> None:
        with Interrupts(30.0) as interrupts:
            interrupts.check()
            drains.append(interrupts.is_draining)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert drains == [False]
