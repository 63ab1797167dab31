"""Continual-learning hyper-parameter search as a Hydra plugin: the core, free of Hydra at import."""

from autocl_sweeper.reporter import report, report_final_result

__all__ = ["report", "report_final_result"]
