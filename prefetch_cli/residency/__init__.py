"""The page cache's share of a checkpoint: how much it holds, whether that is plausible, eviction.

Every figure comes with the method that found it.
"""
