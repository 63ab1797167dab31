"""Callbacks that report to a sweep, a module per library; each needs its library installed."""
