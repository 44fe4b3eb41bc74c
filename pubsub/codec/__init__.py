"""Values: how a batch of messages is written and read. No loop, socket or thread."""
