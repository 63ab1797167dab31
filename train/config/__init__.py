"""Sections of the configuration, and how they are read and checked."""
