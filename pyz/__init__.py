"""What only `prefetch-cli.pyz` needs; `make zipapp` builds it.

Everything is imported straight from the zip. shiv and pex would unpack it into the home directory.
"""
