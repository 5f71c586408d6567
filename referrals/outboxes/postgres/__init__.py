"""The outbox in a database that several machines share."""
