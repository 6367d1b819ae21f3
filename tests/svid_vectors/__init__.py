"""The vectors of the SPIFFE standards: what a verifier has to accept and to reject, one rule at a time.

    rules.py    every rule, with its section and who shows that it is kept
    ids.py      texts that are or are not a SPIFFE ID
    chains.py   certificates and chains, and bundles to judge them by
    bundles.py  documents that are or are not a trust bundle

Generated, not stored: certificates age.  The CA's tests use them on
``ca.svid``, ``ca.bundle`` and ``ca.authority.profile``; the agent's in real TLS
handshakes, presented by either end.
"""
