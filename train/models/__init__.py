"""Pretrained models and texts that Python packages ship, fetched and converted once."""
