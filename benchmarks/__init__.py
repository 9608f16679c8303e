"""Figures that the README speaks of, printed by scripts: `python -m benchmarks.figures`."""
