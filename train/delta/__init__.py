"""Deltas: what a task adds to a model. One file per method, behind `train.delta.delta`."""
