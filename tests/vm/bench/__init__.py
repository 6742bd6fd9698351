"""Measures the command beside others on the machine's mounts: `python -m tests.vm.bench`."""
