"""Continual-learning hyper-parameter search as a Hydra plugin: the core, free of Hydra at import."""

from autocl_sweeper.reporter import report

__all__ = ["report"]
