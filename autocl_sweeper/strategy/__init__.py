"""What a sweep runs next, from its history alone."""
