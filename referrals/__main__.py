"""`python -m referrals` is the `referrals` command."""

from referrals.cli import main

if __name__ == "__main__":
    main()
