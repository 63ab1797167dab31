"""Tasks as data: instructions, rows, batches of rows, metrics."""
