"""Trials for TensorBoard's HParams page: one subfolder per trial, written when the trial is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autocl_sweeper.distributions import Choice, Distribution
from autocl_sweeper.export.rows import Beams, Row, numbers_of, text_of
from autocl_sweeper.space import bare
from autocl_sweeper.types import State, Value


class HParams:
    """The trials of a sweep below one folder: `<stage>_<task>/<number>`.

    An event file that is there for a trial is replaced; nothing else in the folder is touched.
    """

    def __init__(self, folder: Path, spaces: Mapping[str, Mapping[str, Distribution]]) -> None:
        self._folder = folder
        self._over: dict[int, Row] = {}
        self._kinds: dict[str, type] = {}  # of a key: bool, float (a number) or str
        for space in spaces.values():
            for key, one in space.items():
                for value in one.values if isinstance(one, Choice) else [one.low]:
                    self._note(bare(key), value)

    def write(self, rows: Sequence[Row], beams: Beams) -> None:
        over = [row for row in rows if row.state is not State.RUNNING]
        self._over.update((row.trial.number, row) for row in over)
        changed = [
            self._note(bare(key), value)
            for row in over
            for key, value in row.trial.suggestion.params.items()
        ]
        # A key with numbers here and text there would lose trials to the page's own filters.
        for row in self._over.values() if any(changed) else over:
            trial = row.trial
            task = trial.task.replace("/", "_")
            self._write(row, self._folder / f"{trial.stage}_{task}" / str(trial.number))

    def _note(self, key: str, value: Value) -> bool:
        """Settle the kind of a key; whether values written before have another now."""
        before = self._kinds.get(key)
        found = _kind(value)
        self._kinds[key] = found if before in (None, found) else str
        return before not in (None, self._kinds[key])

    def _write(self, row: Row, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        for before in folder.glob("events.out.tfevents.*"):
            before.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"))
        ended = row.ended or row.started or 0.0
        for step, summary in self._summaries(row):
            writer.write_event(Event(wall_time=ended, step=step, summary=summary))
        writer.close()

    def _summaries(self, row: Row) -> Iterator[tuple[int, Any]]:
        from tensorboardX import summary

        numbers = numbers_of(row)
        # The page takes its columns from the first list of them that it finds, and trials differ in
        # theirs: without any list it gathers them from all trials.
        _, begin, end = summary.hparams(self._hparams(row), numbers)
        yield 0, begin
        for report in row.reports:
            yield report.step, _scalar("report", report.score)
        last = row.reports[-1].step if row.reports else 0
        for name, number in numbers.items():
            yield last, _scalar(name, number)
        if row.state is State.FAIL:
            _mark_failed(end)
        yield last, end

    def _hparam(self, key: str, value: Value) -> bool | int | float | str:
        """A value of the one kind that its key has in the whole export."""
        if isinstance(value, str):
            return value
        if isinstance(value, (bool, int, float)) and self._kinds[key] is not str:
            return value
        return text_of(value)

    def _hparams(self, row: Row) -> dict[str, Any]:
        trial = row.trial
        params = {
            bare(key): self._hparam(bare(key), value)
            for key, value in trial.suggestion.params.items()
        }
        parent = "-" if trial.parent is None else str(trial.parent)
        about = {"task": trial.task, "parent": parent, "state": row.state.value}
        return {**params, **{key: text for key, text in about.items() if key not in params}}


def _kind(value: Value) -> type:
    """What the page can hold; null, lists and mappings are text, or they would vanish."""
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, (int, float)) else str


def _scalar(name: str, number: float) -> Any:
    from tensorboardX.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=number)])


def _mark_failed(end: Any) -> None:
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    plugin = end.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    data.session_end_info.status = Status.Value("STATUS_FAILURE")
    plugin.content = data.SerializeToString()
