"""Benchmarks: how fast counterseal is beside its peers, all measured in one run on one server.

`python -m benchmarks` runs them; docs/benchmarks.md says how they are made and how to read them.
"""
