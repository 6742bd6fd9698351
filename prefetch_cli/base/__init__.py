"""What every package may use: errors with their exit codes, words, text, amounts, progress, stop.

Nothing here touches a file, and nothing here is about a checkpoint.
"""
