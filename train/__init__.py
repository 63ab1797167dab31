"""The training app: one job trains one task of a continual-learning chain and scores it."""
