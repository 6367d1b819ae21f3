"""Worker processes, so that an agent can use more than one core (docs/architecture.md, "Worker processes").

The parent keeps listeners, capture, registry, identities, the admin socket and
the metrics; workers own connections, from accept to access record.

    messages    what the two tell each other            codec      values to plain data, by their types
    channel     one end of the socket pair between them
    group       the parent's side: keep N running, tell them everything
    process     one worker as the parent sees it        restarts   when to start it again
    pods        the pods that all of them serve         carrier    all of this as the agent's ``Carrier``
    figures     the answers of all, added up            view       the whole as one agent, for people and Prometheus
    worker      the other side: the data path, fed      answers    what it says when asked
    ledger      limits that all of them count in together
    received    its copy of the identities              __main__   where its process begins

The registry, the trust and the identities of a worker are copies, always behind
the parent's by the time that a message takes; nothing is judged by the parent.
What is bounded for the node is divided among the workers (``max_pending_handshakes``).
"""
