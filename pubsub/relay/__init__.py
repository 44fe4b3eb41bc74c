"""The relay: where two peers meet, neither of which can dial the other."""
