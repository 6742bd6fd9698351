"""Reads bytes into the page cache: plan, engines, queue of blocks, tuning, rate limit.

It knows files and extents, and nothing about checkpoints.
"""
