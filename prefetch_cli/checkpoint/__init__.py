"""The user's arguments -> the files that a loader reads, in its order.

Arguments are directories, files, indexes and repo ids; every file is examined before it counts.
"""
