"""Networks of runs for other tools."""
