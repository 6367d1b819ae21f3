"""The lab: a small cluster in network namespaces on one machine.

    scripts/lab -> cli.py        one function a command; argument_types.py
                   layout.py     names, addresses and paths, all of them
                   state.py      the state directory (a tmpfs), the lock, who is up
                   netns.py      network namespaces and who runs in them
                   topology.py   the link, the nodes and the pods' interfaces
                   processes.py  start and stop the CA and the agents
                   cluster.py    up and down
                   waiting.py    wait until the agents have what was changed
                   pods.py       add and delete a pod
                   removal.py    delete any object
                   manifests.py  the directory of manifests, apply and delete
                   services.py   cluster IPs, endpoints and names of Services
                   service_nat.py  kube-proxy's part: Services for who is not in the mesh
                   federation.py several trust domains
                   agents.py     ask the agents
                   operator_command.py  the ringfence command against one of them
                   faults.py     cut and heal
                   execution.py  run a command in a pod
                   capture.py    record the link
                   pcap.py       read such a recording
                   status.py     what there is

Commands that only look (exec, status, logs, pods) import nothing heavy: they
start in a fraction of the time that the ones that change something may take.
"""
