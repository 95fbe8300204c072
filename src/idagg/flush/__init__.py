"""Leadership, sealing and the outbox: decides what is owed."""
