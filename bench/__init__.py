"""The benchmark: direct, Ringfence, Envoy and HAProxy, side by side (docs/performance.md).

scripts/bench -> cli.py          arguments, rounds, files
                 testbed.py      lab, pods, backends; all of it gone at the end, whatever the end
                 peers.py        what is compared, and where its clients connect
                 envoy.py        the two Envoys
                 haproxy.py      the two HAProxies
                 certificates.py their mutual TLS
                 measures.py     one function a measure: load, and what it cost the peer
                 memory.py       idle, and with many idle connections
                 alone.py        the measures that are processes of their own, of which the next ones are some
                 registry_scale.py  the registry, without network
                 connects.py     what BPF adds to a connect, beside netfilter
                 lane.py         the same-node lane, in a lab of its own
                 sockmap.py      plaintext relayed by the kernel, in a lab of its own
                 accounting.py   CPU and memory of processes, from /proc
                 load.c          the load that no public tool makes
                 targets.py      the ratios that Ringfence is to reach
                 report.py       medians and spread; JSON and Markdown
                 plot.py         the PNG (its own venv has matplotlib)
                 wire.py         what the TLS handshakes agreed on, read from the link
"""
