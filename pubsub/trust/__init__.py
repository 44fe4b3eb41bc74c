"""Trust: who one is, and how that is shown."""
