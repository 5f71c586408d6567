"""The outbox in one file, for one machine."""
