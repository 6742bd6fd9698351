"""Mutated input for all that reads what somebody else has written: `make fuzz`."""
