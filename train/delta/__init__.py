"""What a task trains on top of a frozen model."""
