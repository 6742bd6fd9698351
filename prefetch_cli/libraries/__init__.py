"""What a server opens before it reads a weight: the files of Python distributions, and folders.

Nothing of them is imported: their RECORD is read as text.
"""
