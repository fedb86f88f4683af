"""Faults: processes that are killed, crash or are told to stop."""
