"""The outbox that leaves nothing on a disk."""
