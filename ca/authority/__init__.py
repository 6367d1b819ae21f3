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

What it signs with has a life of its own::

    founding.py         the first root and intermediate; external.py: a root that is somebody else's
    hierarchy.py        what is loaded and published    rehearsal.py: whether agents would accept it
    rotation.py         when one key makes way for the next (core)
    succession.py       the steps, each a transaction; root_succession.py, installation.py
    caretaker.py        the server does what is due and needs nobody (edge: a thread of trio's)

And what agents judge peers by::

    trust_assembly.py   roots, federated bundles, JWT keys and revocations, as one value
    trust_feed.py       looks for changes, wakes the agents that wait for them (edge: trio)
    revocation.py       what the authority itself refuses to whoever is revoked

``keys.py`` keeps private keys encrypted, ``config.py`` reads ca.toml.
"""
