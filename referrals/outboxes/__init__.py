"""Where queued messages wait: one module an implementation of `ports.Outbox`."""
