"""Rules that stop a trial for what it reports, and what they are asked about."""
