"""
``timeline/``: how fast a job ran over time, and what happened meanwhile; one file a run, ``timeline/STARTED-RUN.json``.

Version 1:

```
version     1
started_at  of the run; UTC, ISO 8601
columns     names of a point's numbers
points      a list of numbers each; at most 1,000 a run, older ones are thinned out
events      at, kind and text; at most 500 a run, the first and the newest
```
The newest ten runs are kept, so a job has at most 10,000 points. Knows numbers; knows nothing of runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_llm_stage.dataset.state.json_file import now, read_json, write_json
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError

TIMELINE = "timeline"
VERSION = 1
MAX_POINTS = 1000
MAX_EVENTS = 500
MAX_RUNS = 10
FIRST_INTERVAL_S = 2.0

COLUMNS = ("seconds", "num_rows", "rows_per_s", "num_in_flight", "max_concurrent_requests", "num_failed", "cost")
"""Of a point: `seconds` since the start of the run, `num_rows` and `num_failed` of the job, `cost` in dollars."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that happened in a run.

    Attributes:
        at: When; UTC, ISO 8601.
        kind: One word, e.g. ``pause`` or ``limit``.
        text: One line for people.
    """

    at: str
    kind: str
    text: str


@dataclass(slots=True)
class Timeline:
    """
    The points and events of one run.

    Attributes:
        started_at: Of the run.
        points: In the order of `COLUMNS`; rising in time.
        events: Likewise.
        interval_s: Seconds between two points from now on.
    """

    started_at: str
    points: list[list[float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    interval_s: float = FIRST_INTERVAL_S

    def add_point(self, *numbers: float) -> None:
        """Add a point unless the one before is too near; thin the points out where they are too many."""
        if self.points and numbers[0] < self.points[-1][0] + self.interval_s:
            return
        self.points.append([round(float(number), 3) for number in numbers])
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self.interval_s *= 2

    def add_event(self, kind: str, text: str) -> Event:
        """Add an event that happens now, and return it. Where there are too many, those in the middle go."""
        event = Event(now(), kind, text)
        self.events.append(event)
        if len(self.events) > MAX_EVENTS:
            del self.events[MAX_EVENTS // 2]
        return event


def write_timeline(state: Folder, run_id: str, timeline: Timeline) -> None:
    """
    Replace the file of the run `run_id`.

    Raises:
        OSError: It cannot be written.
    """
    state.make(TIMELINE)
    values = {
        "version": VERSION,
        "started_at": timeline.started_at,
        "columns": COLUMNS,
        "points": timeline.points,
        "events": [asdict(event) for event in timeline.events],
    }
    stamp = "".join(letter for letter in timeline.started_at if letter.isalnum())
    write_json(state, f"{TIMELINE}/{stamp}-{run_id[:12]}.json", values)


def remove_old_timelines(state: Folder) -> None:
    """Keep the newest runs, and room for one more."""
    for name in sorted(state.names(TIMELINE))[: -(MAX_RUNS - 1)]:
        state.remove(f"{TIMELINE}/{name}")


def read_timelines(state: Folder) -> list[Timeline]:
    """Return the timelines of the runs, oldest first; damaged ones are ignored. Raises OSError."""
    timelines = []
    for name in sorted(state.names(TIMELINE)):
        try:
            timeline = read_json(state, f"{TIMELINE}/{name}", _decode, version=VERSION)
        except OutputConflictError:
            continue
        if timeline is not None:
            timelines.append(timeline)
    return timelines


def _decode(values: dict[str, Any]) -> Timeline:
    places = [list(values["columns"]).index(name) for name in COLUMNS]
    points = [[float(point[place]) for place in places] for point in values["points"]]
    return Timeline(str(values["started_at"]), points, [Event(**event) for event in values["events"]])
