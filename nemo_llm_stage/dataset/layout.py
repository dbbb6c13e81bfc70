"""
Where a job keeps its state, so that every reader takes the output folder as it is.

```
out/part-00000000.parquet …   the committed files
out/.nemo_llm_stage/          empty files only: `_SUCCESS`, and one with the name of the job that owns the folder
.out.nemo_llm_stage/          beside it, the state: job.json, journal/, streams/, raw/, bad_input/, commits/, ledger/,
                              tmp/, report.html, summary.json;
                              of the run: run.json, status.json, timeline/, orders/, writing/
```

polars reads every file below a folder that is not empty, hidden or not, and `datasets` and Daft fail on an empty file
that is not in a hidden folder; so the folder holds nothing but data and, in a hidden folder, empty files. Where nothing
can be written beside the output (a bucket's root, a mount point, no access), the state is in ``out/.nemo_llm_stage/``,
and polars needs ``out/*.parquet``. 0.1.0 had its state in ``out/_nemo_llm_stage/`` and ``out/_SUCCESS``; its folders
stay as they are. Knows paths; knows nothing of what is in the state.

Source: polars 2.1, DuckDB 2.0, datasets 5.2, Daft, pandas 3.1, pyarrow 26 and Ray 2.60 on folders of each kind,
November 2026; `tests/dataset/test_readers.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nemo_llm_stage.dataset.owner import JOB
from nemo_llm_stage.dataset.storage import Folder

MARKS = ".nemo_llm_stage"
_OLD_STATE = "_nemo_llm_stage"
_SUCCESS = "_SUCCESS"
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Where the state of one job is.

    Attributes:
        state_url: Path or URL of the state folder.
        success: Name of the success marker in the output folder.
        has_marks: Whether the output folder has an empty file with the name of the job that owns it.
    """

    state_url: str
    success: str = f"{MARKS}/{_SUCCESS}"
    has_marks: bool = False


def find_layout(folder: Folder) -> Layout:
    """
    Return where the state of an output folder is, or where a new job should put it.

    Raises:
        OSError: The place cannot be read.
    """
    old = Layout(f"{folder.url}/{_OLD_STATE}", _SUCCESS)
    inside = Layout(f"{folder.url}/{MARKS}")
    with ThreadPoolExecutor(2) as pool:  # in a store, side by side
        has_record = list(pool.map(lambda layout: Folder(layout.state_url).has(JOB), (old, inside)))
    for layout, is_there in zip((old, inside), has_record, strict=True):
        if is_there:
            return layout
    beside = _beside(folder)
    return inside if beside is None else Layout(beside, has_marks=True)


def writable_layout(folder: Folder, layout: Layout) -> Layout:
    """
    Return `layout` if its state can be written, otherwise the layout with the state inside the folder.

    Makes the folders that the job needs.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.make(MARKS if layout.has_marks else "")
    if layout.has_marks:
        places = [Folder(layout.state_url), Folder(f"{folder.url}/{MARKS}")]
        try:
            with ThreadPoolExecutor(2) as pool:  # in a store, side by side
                list(pool.map(_probe, places))
            if _is_one_disk(folder, layout):
                return layout
        except Exception:  # noqa: BLE001, S110 - a store's library may raise anything where access is denied
            pass
        layout = Layout(f"{folder.url}/{MARKS}")
    _probe(Folder(layout.state_url))
    return layout


def _beside(folder: Folder) -> str | None:
    """Return the place beside `folder`; None where there is none."""
    url = folder.root if folder.is_local else folder.url
    parent, _, name = url.rpartition("/")
    if not name or (not folder.is_local and "/" not in url.partition("://")[2]):
        return None
    return f"{parent}/.{name}.nemo_llm_stage"


def _probe(state: Folder) -> None:
    """Write a file and remove it."""
    state.make()
    state.fs.pipe_file(state.path(_PROBE), b"")
    state.remove(_PROBE)


def _is_one_disk(folder: Folder, layout: Layout) -> bool:
    """Whether files can be linked from the state into the folder."""
    return not folder.is_local or Path(folder.root).stat().st_dev == Path(layout.state_url).stat().st_dev
