"""One self-contained HTML page of what lies in a folder of runs."""
