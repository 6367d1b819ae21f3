"""``ringfence dashboard``: the mesh as a picture, in a browser.

    source.py     asks the local agent, which asks the others (node_agent/sight)
    sights.py     what the agents said, read with suspicion, and kept while one is away (pure)
    rates.py      counters into rates, with a short history (pure)
    graph.py      who is a node of the picture, and which counters are one edge (pure)
    picture.py    the documents that the page asks for (pure)
    gate.py       who may look: Host, token, session (pure)
    server.py     the HTTP server: routes, headers, files
    static/       the page: plain JavaScript modules, SVG, no build step, nothing from other hosts

A process of its own, not the agent: what it needs of memory and time is not the
data path's, and it can do no more than whoever may ask the operator's socket for
what there is to see.  It changes nothing.
"""
