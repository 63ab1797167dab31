"""What a person sees of a sweep, from its history alone."""
