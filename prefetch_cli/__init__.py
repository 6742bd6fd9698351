"""Warm a model checkpoint into the page cache, and prove that it stayed there.

The packages, each of which imports only those above it:

base        errors, words, text, amounts, progress, stop
linux       files, mounts, memory, page cache, threads: all that the kernel tells and does
hubs        a name in a hub -> where its local cache holds it
checkpoint  what the user names -> the files that a loader reads, in its order
commands    the words of COMMAND -> its server, and the checkpoints that this one reads
libraries   what a server opens before it reads a weight
plan        extents, shares, ranks, the decision: pure
reading     bytes into the page cache: engines, queue, tuning
residency   what the page cache holds of it: survey, doubt, eviction
run         the stages in their order (`run/pipeline.py`), their outcome, its JSON document
show        lines, bar, warnings
process     the main thread, signals, COMMAND and the warmer beside it
cli         flags, and what they mean together
"""

__version__ = "0.1.0"
