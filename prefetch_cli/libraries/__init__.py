"""The files that a server opens before its first weight: Python distributions and folders.

Nothing is imported: a distribution's RECORD is read as text.
"""
