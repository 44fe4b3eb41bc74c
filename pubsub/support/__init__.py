"""What any layer may need: logging, what this process is called, where a call came from."""
