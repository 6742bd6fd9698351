"""What this process reads, and whether: extents, shares, ranks, the decision.

Pure: no threads, no clock, no I/O.
"""
