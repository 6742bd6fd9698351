"""What the user names -> the files that a loader reads, in the order in which it does.

Directories, files, indexes and the caches of hubs; every file is looked at before it counts.
"""
