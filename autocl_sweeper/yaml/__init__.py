"""YAML files of a configuration: text, includes and merge, resolving, the snapshot of a sweep."""
