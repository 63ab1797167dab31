"""What the README says to type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from support.installed import CLEAN, ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]


def block(kind: str) -> str:
    (found,) = (text for one, text in BLOCKS if one == kind)
    return found


def typed(line: str, cwd: Path) -> str:
    """What a command of the README prints in this folder, with this interpreter."""
    words = shlex.split(line)
    program = {"python": [sys.executable], "autocl": [sys.executable, "-m", "autocl_sweeper"]}
    argv = [*program[words[0]], *words[1:]]
    environment = CLEAN | {"PYTHONPATH": str(ROOT), "AUTOCL_LEASE_DIR": str(cwd / "leases")}
    done = subprocess.run(
        argv, cwd=cwd, env=environment, text=True, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout
