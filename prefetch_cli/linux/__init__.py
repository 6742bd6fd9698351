"""What the kernel tells and does: files, mounts, memory, page cache, threads, the end of a process.

The only package that knows ctypes, /proc and /sys.
"""
