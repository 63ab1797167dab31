"""Trials written where dashboards read them: an Optuna storage, TensorBoard. Never read back."""
