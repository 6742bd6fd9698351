"""What the servers' own code opens, against what we warm, in the same directories."""
