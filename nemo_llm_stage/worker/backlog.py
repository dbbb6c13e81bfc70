"""
The rows that a worker was given and has not started.

A row is unread until it is submitted, and queued until it is started. Whoever waits for rows to start is woken when
enough of them have; nothing polls. Knows counts of rows; knows nothing of tasks, files or stages.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable


class Backlog:
    """
    Counts of unread and queued rows. Safe for several threads.

    Args:
        max_queued: Queued rows beyond which no more should be read.

    Attributes:
        changed: Notified when `has_room` or `needs_rows` becomes true. Wait on it for these, and for conditions of
            your own that you notify it of.
    """

    def __init__(self, max_queued: int) -> None:
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)
        self._max_queued = max_queued
        self._num_queued = 0
        self._unread: dict[Hashable, int] = {}
        self._num_unread = 0
        self._num_wanted = 0

    @property
    def num_waiting(self) -> int:
        """Rows that are unread or queued; estimated where a task's rows were not counted."""
        return self._num_unread + self._num_queued

    @property
    def has_room(self) -> bool:
        """Whether more rows should be read."""
        return self._num_queued <= self._max_queued

    @property
    def needs_rows(self) -> bool:
        """Whether fewer rows wait than `want` said."""
        return self.num_waiting < self._num_wanted

    def resize(self, max_queued: int) -> None:
        """Change the number of queued rows beyond which no more should be read."""
        with self.changed:
            self._max_queued = max_queued
            self.changed.notify_all()

    def want(self, num_rows: int) -> None:
        """Set the number of rows that should wait."""
        with self.changed:
            self._num_wanted = num_rows

    def add(self, task: Hashable, num_rows: int) -> None:
        """Note a task with so many unread rows. Safe to call twice."""
        with self.changed:
            self._set_unread(task, num_rows)

    def queue(self, task: Hashable, *, num_read: int, num_submitted: int) -> None:
        """Note that rows of a task were read, and some or all of them submitted."""
        with self.changed:
            self._set_unread(task, self._unread.get(task, 0) - num_read)
            self._num_queued += num_submitted

    def finish_reading(self, task: Hashable) -> None:
        """Note that all rows of a task are read, or given up. Safe to call twice."""
        with self.changed:
            self._num_unread -= max(0, self._unread.pop(task, 0))
            self.changed.notify_all()

    def start_row(self) -> None:
        """Note that one queued row is started or taken back; wakes waiters at the row that makes their wish true."""
        with self._lock:
            self._num_queued -= 1
            if self._num_queued == self._max_queued or self.num_waiting == self._num_wanted - 1:
                self.changed.notify_all()

    def notify(self, _: object = None) -> None:
        """Wake all waiters; a callback for futures."""
        with self.changed:
            self.changed.notify_all()

    def _set_unread(self, task: Hashable, num_rows: int) -> None:
        # A part that was estimated too small has a negative number, which counts as none.
        self._num_unread += max(0, num_rows) - max(0, self._unread.get(task, 0))
        self._unread[task] = num_rows
        self.changed.notify_all()
