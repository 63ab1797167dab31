"""`autocl export`: a sweep that ran, or runs, written to other places from its journal alone."""

from __future__ import annotations

from pathlib import Path

from autocl_sweeper.errors import SweepFolderError
from autocl_sweeper.export.places import Places
from autocl_sweeper.export.rows import Rows, described
from autocl_sweeper.journal import NAME, fold, read


def export(folder: Path, places: Places) -> list[str]:
    """Write all trials of a sweep folder; what was written, a line for each place.

    Raises SweepFolderError, ConfigurationError and whatever the storage raises.
    """
    folder = folder.absolute()
    try:
        records = read(folder)
    except OSError as error:
        raise SweepFolderError(
            f"'{folder / NAME}' cannot be read: {error.strerror}.\n"
            "  Name the folder of a sweep: its hydra.sweep.dir."
        ) from error
    state = fold(records)
    if state.setup is None:
        raise SweepFolderError(f"'{folder / NAME}' has no sweep in it: nothing has begun there.")
    sweep = described(folder, state.setup["fingerprint"], places.study_name)
    rows = Rows(state.history, records).every()
    for place in (found := places.of(sweep)).values():
        place().write(rows, state.history.beams)
    return [f"{name}: {len(rows)} trials of {len(state.history.beams)} stages" for name in found]
