"""One process's runtime: what a Peer knows and does, turn by turn, in its loop's thread."""
