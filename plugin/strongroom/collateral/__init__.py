"""Endorsements: found, verified, kept, and handed to the verifiers. The only room that fetches.

`wanted` says what a piece of evidence needs, `sources` where it comes from, `trial` judges each piece before
it is kept and whenever it is read, `store` keeps it, `cache` puts them together, `bundle` makes a file for
hosts without a network.
"""
