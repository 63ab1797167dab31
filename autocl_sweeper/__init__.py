"""Continual-learning hyper-parameter search as a Hydra plugin: the core, free of Hydra at import."""
