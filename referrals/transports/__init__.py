"""Ways out for a finished message, one module each."""
