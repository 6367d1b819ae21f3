"""Federation: which other trust domains ours believes, and how their bundles come here.

    relation.py   who, where and how to prove it: the endpoint of one trust domain
    intake.py     whether a document that arrived may take the place of the bundle in force
    schedule.py   when to ask next
    fetching.py   ask once, over HTTPS, by either endpoint profile
    polling.py    the task that does all of it for every trust domain in the store
    endpoint.py   the other direction: our own bundle, served over HTTPS

A relation is one-way: to believe is one thing, to be believed another (SPIFFE
Federation 6).  Relations are in the database, not in ca.toml, so that
replicas share them and a command takes effect without a restart.
"""
