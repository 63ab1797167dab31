"""What a task adds to a model, one file per method, behind the protocols of `train.delta.delta`."""
