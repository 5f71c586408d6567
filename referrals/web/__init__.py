"""The page: the same service as the command line, in a browser. Needs `referrals[web]`."""
