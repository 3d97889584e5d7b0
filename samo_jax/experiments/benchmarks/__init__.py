"""Benchmarks: tasks, networks and data, trained with any method."""
