"""Files, memory and ranks -> what this process reads: extents, shares, ranks, the decision.

Pure: no threads, no clock, no I/O.
"""
