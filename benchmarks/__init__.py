"""Side-by-side measurements: `python -m benchmarks`. Run them alone on the machine."""
