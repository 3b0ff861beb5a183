"""`python -m benchmarks [startup] [vae] [ddpm]`: all of them by default."""

import importlib
import sys

ALL = ("startup", "vae", "ddpm")

for name in sys.argv[1:] or ALL:
    importlib.import_module(f"benchmarks.{name}").main()
