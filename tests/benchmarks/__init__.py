"""What Turnkeeper costs, side by side with what it could be compared to, as ratios within one run.

Never timed tests: the machines that run them are shared, and seconds measured on them prove nothing. `make bench`
runs them all; docs/benchmarks.md says how to read them.
"""
