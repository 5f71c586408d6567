"""Referral e-mails for people harmed by hate crime and anti-social behaviour."""

__version__ = "0.1.0"
