"""The messages of docs/troubleshooting.md are those that the code has."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from support.installed import ROOT

OTHERS = {"Could not find 'hydra/sweeper/autocl'", "CUDA out of memory"}  # Hydra's, torch's
PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
MESSAGES = [
    message
    for heading in re.findall(r"^### (.*)$", PAGE, re.M)
    for message in re.findall(r"`(.*?)`", heading)
]


@cache
def texts() -> list[str]:
    """Every text of the code; a value that is put into one is an ellipsis."""
    found = []
    for path in (ROOT / "autocl_sweeper").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_page_has_messages() -> None:
    assert len(MESSAGES) > 20 and set(MESSAGES) > OTHERS


@pytest.mark.parametrize("message", sorted({*MESSAGES} - OTHERS))
def test_a_message_of_the_page_is_one_of_the_code(message: str) -> None:
    pattern = re.compile(".*?".join(map(re.escape, message.split("..."))), re.S)
    assert any(pattern.search(text) for text in texts())
