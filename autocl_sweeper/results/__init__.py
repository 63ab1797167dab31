"""The files a sweep leaves for its reader, and what they say, computed from its history."""
