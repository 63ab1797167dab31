"""Classes of tasks whose answer is made by a head of its own: what they read, and rows made up by rule."""
