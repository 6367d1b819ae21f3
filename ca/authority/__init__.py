"""The signing server: who may have which identity, and the certificates that say so.

A request walks through the files in this order::

    server.py       TLS 1.3, frames, deadlines          (edge: trio)
    admission.py    how much each peer may ask for       (core, with limits.py)
    front_desk.py   who answers it                       (edge: trio)
    worker.py       a queue in turns, and one thread     (edge: trio; fair_queue.py and overload.py are cores)
    requests.py     one message in, one reply out        (edge: worker thread)
    attestation/    is it that node?                     (cores, and plugins that ask the network)
    placement.py    does that workload run there?        (edge: reads the manifests)
    signer.py       CSR checks, sign, validate           (core but for the random serial)
    profile.py      what each certificate must look like (core)
    store/          the journal: written before anything leaves (edge: SQLite, PostgreSQL)

``keys.py`` keeps private keys encrypted, ``hierarchy.py`` makes and loads
root and intermediate, ``config.py`` reads ca.toml.
"""
