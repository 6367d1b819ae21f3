"""What this agent sees, told to other agents; and what they see, collected for one picture of the mesh.

    own.py         what this agent sees: counters by edge, connections, records, certificates (public parts)
    series.py      counters of Prometheus into edges of the picture (pure)
    traffic.py     counters, and the connections that ended last, for ``ringfence top`` and ``connections --ended``
    shown_config.py  the configuration without what may be secret, for ``ringfence bundle``
    peers.py       TLS with node certificates: who may ask, and who answered
    endpoint.py    ``[listen] sight``: serves it to the agents of other nodes, and to nobody else
    collector.py   asks the agents of all other nodes, when somebody looks

Nothing here is asked unless a dashboard (or somebody at ``GET /mesh``) looks.
"""
