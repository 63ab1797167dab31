"""Memory of a device: what a training may take of it."""
