"""NFS where the processor is native: user-mode Linux, built from Debian's source.

`python -m tests.uml` measures there; `python -m tests.uml.within` runs any command there.
"""
