"""The demo: shows with real programs what Ringfence does, and measures whether it did.

    scripts/demo -> cli.py       arguments, the order of the proofs, cleaning up
                    stage.py     the lab, its pods and programs, what the agents recorded
                    wire.py      what crossed the link between the nodes
                    traffic.py   proofs: identities, ciphertext, whole bytes, load spread
                    trouble.py   proofs: a backend killed, connections denied, an agent killed
                    screen.py    how it is printed

Every line that says ``ok`` was measured in this run; the demo's exit code is 0 only
if all of them were.
"""
