"""What breaks, and what the command makes of it: the table of faults in tests/README.md."""
