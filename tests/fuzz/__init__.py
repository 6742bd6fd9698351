"""Mutated input for all code that reads what somebody else wrote: `make fuzz`."""
