"""One module per version of the ledger's schema, each with `upgrade()`: what leads to it from the version before.

A released one is never changed: a change of `schema.py` is a new version, with a new module here.
"""
