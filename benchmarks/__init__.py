"""Benchmarks: questions about speed, answered side by side."""
