"""
``orders/``: one small JSON file an order, by whoever may write the folder; the driver acts and answers beside it.

``orders/ID.json``, version 1:

```
version   1
kind      pause, resume, drain, stop or set
settings  for set: setting → its new value
given_at  UTC, ISO 8601
by        user@host
```

``orders/ID.answer.json``, version 1: ``is_done``, ``text`` and ``at``. Ids sort by time. An order that was given while
no run goes on waits for the next one if it is a ``set``; the others are refused then.
"""

from __future__ import annotations

import getpass
import socket
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from nemo_llm_stage.dataset.state.json_file import now, read_json, write_json
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import OutputConflictError

ORDERS = "orders"
VERSION = 1
KINDS = ("pause", "resume", "drain", "stop", "set")
MAX_ORDERS = 100
"""Orders read at a time; the others wait for the next look."""

_ANSWER = ".answer.json"


@dataclass(frozen=True, slots=True)
class Order:
    """
    What a person wants of a run.

    Attributes:
        kind: One of `KINDS`.
        settings: For ``set``: setting → value.
        given_at: When.
        by: By whom.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    given_at: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What became of an order.

    Attributes:
        is_done: Whether it was followed.
        text: What was done, or why not.
        at: When.
    """

    is_done: bool
    text: str
    at: str = ""


def give_order(state: Folder, kind: str, settings: dict[str, Any] | None = None) -> str:
    """
    Write an order and return its id.

    Raises:
        OSError: The folder cannot be written.
    """
    order_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}"
    order = Order(kind, settings or {}, now(), _author())
    state.make(ORDERS)
    write_json(state, f"{ORDERS}/{order_id}.json", {"version": VERSION, **asdict(order)})
    return order_id


def open_orders(state: Folder) -> list[str]:
    """Return the ids of the orders without an answer, oldest first; at most 100."""
    names = state.names(ORDERS)
    answered = {name.removesuffix(_ANSWER) for name in names if name.endswith(_ANSWER)}
    ids = {name.removesuffix(".json") for name in names if name.endswith(".json") and not name.endswith(_ANSWER)}
    return sorted(ids - answered)[:MAX_ORDERS]


def read_order(state: Folder, order_id: str) -> Order:
    """
    Return an order.

    Raises:
        OutputConflictError: It is damaged, or of a kind that nobody knows.
        OSError: It cannot be read.
    """
    order = read_json(state, f"{ORDERS}/{order_id}.json", _order_of, version=VERSION)
    if order is None:
        raise OutputConflictError("the order is gone.")
    return order


def answer_order(state: Folder, order_id: str, answer: Answer) -> None:
    """Write what became of an order; raises OSError."""
    values = {"version": VERSION, "is_done": answer.is_done, "text": answer.text, "at": now()}
    write_json(state, f"{ORDERS}/{order_id}{_ANSWER}", values)


def read_answer(state: Folder, order_id: str) -> Answer | None:
    """Return what became of an order; None where there is no answer yet. Raises as `read_order`."""
    name = f"{ORDERS}/{order_id}{_ANSWER}"
    return read_json(state, name, lambda it: Answer(bool(it["is_done"]), str(it["text"]), it["at"]), version=VERSION)


def remove_answered_orders(state: Folder) -> None:
    """Remove the orders of earlier runs, but for those that wait for an answer."""
    waiting = {f"{order_id}.json" for order_id in open_orders(state)}
    for name in state.names(ORDERS) - waiting:
        state.remove(f"{ORDERS}/{name}")


def _order_of(values: dict[str, Any]) -> Order:
    if values["kind"] not in KINDS:
        raise ValueError(f"its kind is {values['kind']!r}; it must be one of {', '.join(KINDS)}")
    return Order(values["kind"], dict(values["settings"]), str(values["given_at"]), str(values["by"]))


def _author() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "someone"
    return f"{user}@{socket.gethostname()}"
