"""The contract between the agents and the CA.

    spiffe     names: what a SPIFFE ID is
    svid       which certificates prove such a name (SPIFFE X509-SVID)
    csr        keys and certificate signing requests
    wire       frames and msgpack, the only door to msgpack
    trust      whom an agent believes: roots, revocations, as one value with one version
    messages   what the two sides say to each other (fields: reading them strictly)
    tls        contexts that trust one bundle and prove one identity
    client     the agents' side of the conversation (connection: one of them, and both clocks)
    errors     what can go wrong
    manifests  the Kubernetes objects that both sides read

The signing server is ``ca.authority``; ``node_agent`` may not import it.
"""
