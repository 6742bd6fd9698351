"""One run: its options, its stages in their order (`pipeline`), its outcome, its JSON document.

`pipeline` is the table of contents of this program.
"""
