import os

# Before anything imports matplotlib: tests have no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
