"""``ringfence explain`` and ``ringfence policies``: why a connection is allowed or denied, and what would change that.

    places.py     what an operator's words for a source and a destination mean
    ways.py       how a connection would go to each endpoint, and what the policies say of it there
    explainer.py  the answer: identities, mode, policies, endpoints, limits, what is in the way
    past.py       the same for a connection that was, by the id of its record
    policies.py   every policy in force, whom it is about, what it did
    routes.py     the same on the admin socket

It asks what the data path asks, of the same parts, and changes nothing.
"""
