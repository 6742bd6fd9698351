"""The command line: its flags, what they mean together, and the errors that end in one line.

The only package that knows click.
"""
