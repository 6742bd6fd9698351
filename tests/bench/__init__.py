"""The figures of this folder's README: prefetch-cli beside its peers in one run."""
