"""The figures of this folder's README: prefetch-cli and its peers, side by side in one run."""
