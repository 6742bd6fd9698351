"""The kernel's side: files, mounts, memory, page cache, threads, processes and their exit.

The only package that uses ctypes, /proc and /sys.
"""
