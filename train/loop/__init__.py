"""Training: updates, evaluation, several processes."""
