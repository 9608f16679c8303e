"""The figures of benchmarks/README.md, printed by scripts: `python -m benchmarks.figures`."""
