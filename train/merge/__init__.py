"""Deltas of several tasks made into one: rules on named tensors, sources, weights, plans."""
