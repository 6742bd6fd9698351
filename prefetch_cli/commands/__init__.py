"""The words of COMMAND -> the server that it starts, and the checkpoints that this one reads.

Tables of values, and pure functions of words and variables.
"""
