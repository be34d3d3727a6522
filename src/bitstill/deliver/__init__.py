"""Delivery: artifacts written and verified, loaded, evaluated, exported, timed and compared."""
