"""Fixtures of the tests of what reads sweep folders."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Journals are made by the hundred, and none of them has to outlive a power cut."""
    monkeypatch.setattr("os.fsync", lambda file: None)
