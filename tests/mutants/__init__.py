"""Changes one line at a time and sees whether a test notices: ``python -m tests.mutants``."""
