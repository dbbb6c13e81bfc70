"""A provider's rate limit is followed: by its refusals, and by what its headers say ahead."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from nemo_llm_stage.client.governor.pace import Pace
from nemo_llm_stage.client.governor.rate_headers import RateWindow, parse_rate_windows, parse_reset_s


class Provider:
    """Takes `rate` requests a second on average, and `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.left, self.at_s = rate, burst, burst, 0.0

    def takes(self, now_s: float) -> bool:
        self.left = min(self.burst, self.left + self.rate * (now_s - self.at_s))
        self.at_s = now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True


@pytest.mark.parametrize(
    ("rate", "burst", "retry_after_s"), [(10, 10, 1.0), (10, 100, 6.0), (2, 2, None), (100, 50, 1.0)]
)
def test_refusals_set_the_pace(rate: float, burst: float, retry_after_s: float | None) -> None:
    """Most of what the provider takes is sent, and little more."""
    pace, provider = Pace(), Provider(rate, burst)
    sent = refused = 0
    for step in range(20_000):
        now_s = step / 100
        if pace.wait_s(now_s) > 0:
            continue
        pace.note_sent(now_s)
        is_taken = provider.takes(now_s)
        if not is_taken:
            pace.note_refusal(now_s, now_s, retry_after_s)
        if now_s >= 60:
            sent += is_taken
            refused += not is_taken
    assert sent >= 0.93 * rate * 140
    assert refused <= 0.05 * sent


def test_nothing_is_held_back_without_a_reason() -> None:
    """No refusal, no headers: no pace."""
    pace = Pace()
    for number in range(10_000):
        assert pace.wait_s(number * 1e-5) == 0
        pace.note_sent(number * 1e-5)


def test_a_long_retry_after_holds_everything_back() -> None:
    """The server said when it takes requests again; a short one concerns the refused request alone."""
    pace = Pace()
    pace.note_sent(0)
    pace.note_refusal(0, 1, 30)
    assert pace.wait_s(1) == 30
    assert pace.wait_s(31) <= 5


def test_a_refusal_of_the_first_requests_tells_no_rate() -> None:
    """Too few were sent: the refused one waits as long as it was asked to, and nothing else does."""
    pace = Pace()
    for _ in range(3):
        pace.note_sent(0)
    pace.note_refusal(0, 0, 0.2)
    assert pace.wait_s(0.2) == 0


def test_a_refusal_is_forgotten() -> None:
    """After minutes without another one nothing is held back."""
    pace = Pace()
    for _ in range(10):
        pace.note_sent(0)
    pace.note_refusal(0, 0, None)
    assert pace.rate_per_s is not None
    pace.wait_s(1000)
    assert pace.rate_per_s is None


def test_headers_hold_requests_back_before_a_refusal() -> None:
    """With nothing left, the next request waits until about one more is allowed."""
    pace = Pace()
    pace.note_windows((RateWindow(1, 30, 60), None), 100, pace.taken, now_s=100)
    assert pace.wait_s(100) == 0
    pace.note_sent(100)
    assert pace.wait_s(100) == pytest.approx(30 / 58.5)
    assert pace.wait_s(101) == 0


def test_headers_hold_tokens_back() -> None:
    """A limit on tokens counts what requests are expected to take."""
    pace = Pace()
    pace.note_windows((None, RateWindow(1000, 10)), 0, pace.taken, now_s=0)
    pace.note_sent(0, tokens=600)
    assert pace.wait_s(0) == 0
    pace.note_sent(0, tokens=600)
    assert pace.wait_s(0) == 10


@pytest.mark.parametrize("latency_s", [0.2, 5.0, 30.0])
def test_headers_are_as_old_as_their_request(latency_s: float) -> None:
    """What came back and what was sent since then counts: nearly all that the provider takes is sent."""
    pace, provider = Pace(), Provider(10, 10)
    answers: deque[tuple[float, float, tuple[float, float], RateWindow]] = deque()
    sent = refused = 0
    for step in range(12_000):
        now_s = step / 100
        while answers and answers[0][0] <= now_s:
            _, sent_at_s, taken, window = answers.popleft()
            pace.note_windows((window, None), sent_at_s, taken, now_s)
        if pace.wait_s(now_s) > 0:
            continue
        pace.note_sent(now_s)
        if provider.takes(now_s):
            sent += now_s >= 60
            window = RateWindow(int(provider.left), (10 - provider.left) / 10, 10)
            answers.append((now_s + latency_s, now_s, pace.taken, window))
        else:
            refused += now_s >= 60
            pace.note_refusal(now_s, now_s, 1)
    assert sent >= 0.95 * 10 * 60
    assert refused <= 0.02 * sent


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"1s", 1),
        (b"6m0s", 360),
        (b"1m30.951s", 90.951),
        (b"12ms", 0.012),
        (b"2m59.56s", 179.56),
        (b"1h2m", 3720),
        (b"59", 59),
        (b"0.25", 0.25),
        (b"1800000060", 60),
        (b"1800000060000", 60),
        (b"2027-01-15T08:01:00Z", 60),
        (b"99999d", 86_400),
        (b"", None),
        (b"soon", None),
        (b"-1", None),
        (b"nan", None),
        (b"inf", None),
        (b"1" * 100, None),
        (b"\xff\x00", None),
        (b"2027-01-15T08:01:00", None),
    ],
)
def test_resets_come_in_many_forms(raw: bytes, seconds: float | None) -> None:
    """Seconds, durations, times; what is none of them says nothing."""
    expected = None if seconds is None else pytest.approx(seconds)
    assert parse_reset_s(raw, NOW) == expected


def test_rate_limit_headers_are_read() -> None:
    """OpenAI's, Groq's and Azure's, and Anthropic's."""
    headers = {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"anthropic-ratelimit-tokens-remaining": b"1000",
        b"anthropic-ratelimit-tokens-reset": b"2027-01-15T08:01:00Z",
    }
    assert parse_rate_windows(headers, NOW) == (RateWindow(59, 1, 60), RateWindow(1000, 60))


@pytest.mark.parametrize("values", list(itertools.product([b"-1", b"0", b"x", b""], [b"0", b"-1", b"x"])))
def test_odd_rate_limit_headers_say_nothing(values: tuple[bytes, bytes]) -> None:
    """Azure has sent -1 and 0."""
    names = (b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")
    assert parse_rate_windows(dict(zip(names, values, strict=True)), NOW) == (None, None)
