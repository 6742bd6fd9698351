"""The command on real mounts, in a machine that the tests boot themselves."""
