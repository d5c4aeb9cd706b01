"""Doctests run here too; the peers have libraries that are not ours."""

collect_ignore = ["peers"]
