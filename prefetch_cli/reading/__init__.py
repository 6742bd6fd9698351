"""Bytes into the page cache: the plan, the engines, the queue of blocks, the tuning.

It knows files and extents, and nothing of checkpoints.
"""
