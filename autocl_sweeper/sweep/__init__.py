"""A sweep while it runs: the loop, and each thing it keeps an eye on in a file of its own."""
