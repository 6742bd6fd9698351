"""The main thread that answers signals, and COMMAND with the warmer beside it.

A storage that hangs holds none of them.
"""
