"""What becomes of a job of the app `faults`, by the way it ends."""

from __future__ import annotations

# What a fault's job scores although something is wrong with it.
SCORES = {"fine": 1.0, "grandchildren": 1.0, "escaped": 1.0, "workers": 9.0, "metrics": 0.5,
          "score_and_lock": 1.0}  # fmt: skip
# What cannot be ranked, and the reason.
RESULTS = {
    "huge": "its score is inf",
    "returns_nan": "its score is nan",
    "nothing": "it returned nothing",
    "text": "it returned a str, not a number",
    "bool": "it returned a bool, not a number",
    "lock": "it returned a lock, not a number",
    "homebound": "it returned a Homebound, not a number",
    "no_score": r"what it returned has no number 'score' \(it has: loss\)",
    "nan_score": "its score is nan",
}
UNRETURNED = "exit status 0 before the task function returned"
# fault -> the whole reason as a pattern, a part of the last log lines, the cause; None: it completes
FAULTS: dict[str, tuple[str, str, str] | None] = {
    "exception": ("ValueError: no such luck", "raise ValueError", "exception"),
    "two_arguments": ("TwoArgumentsError: a mistake in the loader", "raise TwoArg", "exception"),
    "speechless": ("SpeechlessError", "raise SpeechlessError", "exception"),
    "exit_3": ("exit status 3", "leaving with 3", "exit"),
    "exit_words": ("exit status 1", "no data set", "exit"),
    "exit_0": (UNRETURNED, "about to: exit_0", "exit"),
    "os_exit": ("exit status 7", "about to: os_exit", "exit"),
    "os_exit_0": (UNRETURNED, "about to: os_exit_0", "exit"),
    "sigkill": (r"killed by SIGKILL \(.*out-of-memory.*\)", "about to: sigkill", "signal"),
    "segfault": ("killed by SIGSEGV", "about to: segfault", "signal"),
    "no_memory": ("MemoryError", "raise MemoryError", "host_memory"),
    "no_device_memory": (
        r"OutOfMemoryError: CUDA out of memory\. Tried .* \[alone on cpu-.: another attempt .*\]",
        "raise OutOfMemoryError",
        "device_memory",
    ),
    "no_memory_behind": (r"KeyError: 'batch' \[alone on .*\]", "KeyError", "device_memory"),
    "child_without_memory": (r"exit status 1 \[alone on .*\]", "CUDA out of", "device_memory"),
    **{fault: (reason, "", "result") for fault, reason in RESULTS.items()},
    **dict.fromkeys(list(SCORES)[1:]),
}
