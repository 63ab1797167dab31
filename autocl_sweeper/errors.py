"""Everything this package raises on purpose, in one tree::

    AutoCLError
    |-- ConfigurationError      the configuration is wrong; found before a device is touched
    |   |-- ChangedSweepError   the folder holds a sweep with another configuration
    |   `-- LayerError          a YAML file, or one that it includes, cannot be read
    |-- SweepFolderError        the sweep folder cannot be used
    |   |-- SweepLockedError    another sweep is writing into it
    |   |-- JournalDamagedError a line of its journal, not the last, cannot be read
    |   `-- JournalLostError    its journal was removed or replaced while the sweep ran
    |-- DeviceError             no device can serve a job
    |-- InfeasibleError         a job's settings cannot be trained; raised by jobs
    |   `-- InfeasibleBudgetError   no plan of it fits its memory budget
    |-- SkippedError            a job would do what another one does; raised by jobs
    |-- EvaluationMemoryError   a device had no memory left for an evaluation; raised by jobs
    `-- SweepStoppedError       the sweep cannot go on; what finished is in the journal
        |-- TooManyFailuresError
        |-- NoSurvivorError     a stage ended without a trial to start the next one from
        |-- DiskError           a file system is full or broken
        |-- SearchError         a search breaks its contract with the strategy
        `-- JobContractError    jobs do not return or save what the next step needs

A message says what happened, the value, the rule, what to do and where to look.
"""

from __future__ import annotations


class AutoCLError(Exception):
    """The root of the tree."""


class ConfigurationError(AutoCLError):
    """The configuration is wrong; found before a device is touched."""


class ChangedSweepError(ConfigurationError):
    """The folder holds a sweep with another configuration."""


class LayerError(ConfigurationError):
    """A YAML file, or one that it includes, cannot be read."""


class SweepFolderError(AutoCLError):
    """The sweep folder cannot be used."""


class SweepLockedError(SweepFolderError):
    """Another sweep is writing into the folder."""


class JournalDamagedError(SweepFolderError):
    """A line of the journal, not the last one, cannot be read."""


class JournalLostError(SweepFolderError):
    """The journal was removed or replaced while its sweep ran."""


class DeviceError(AutoCLError):
    """No device can serve a job."""


class InfeasibleError(AutoCLError):
    """A job's settings cannot be trained, however often it runs. Apps raise it in their jobs."""


class InfeasibleBudgetError(InfeasibleError):
    """No plan of a job fits its memory budget. Training code raises it before the step."""


class SkippedError(AutoCLError):
    """A job would repeat another one: its trial is over, and neither failed nor ranked. Apps raise it."""


class EvaluationMemoryError(AutoCLError):
    """A device had no memory left for an evaluation, which training alone may have had."""


class SweepStoppedError(AutoCLError):
    """The sweep cannot go on; what finished is in the journal."""


class TooManyFailuresError(SweepStoppedError):
    """More trials failed than `max_failures` allows."""


class NoSurvivorError(SweepStoppedError):
    """A stage ended without a trial to start the next one from."""


class DiskError(SweepStoppedError):
    """A file system is full or broken, which says nothing about the job that met it."""


class SearchError(SweepStoppedError):
    """A search breaks its contract with the strategy."""


class JobContractError(SweepStoppedError):
    """Jobs do not return or save what the next step needs."""
