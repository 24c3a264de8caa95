"""Evaluation: sequences with known boxes, metrics, runs of trackers over them, reports and benchmarks."""
