"""What goes over a connection: frames, messages, handshake, heartbeat. No I/O and no clock."""
