"""What a user holds: Pub, Sub and Peer, for event loops and for code that blocks."""
