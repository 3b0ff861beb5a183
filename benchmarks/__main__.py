"""`python -m benchmarks [NAME ...]`: all of ALL by default."""

import importlib
import sys

ALL = ("startup", "peers", "ddpm", "simsiam", "augment", "knn", "fidelity")

for name in sys.argv[1:] or ALL:
    importlib.import_module(f"benchmarks.{name}").main()
