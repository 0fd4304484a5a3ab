"""A gate for continuous integration: a run against a committed baseline."""
