"""What clients feel when endpoints are slow, fail, flap or are cut off, policy by policy.

scenarios   who fails when
servers     a model of the endpoints: how they accept, queue, serve, and fail
world       many agents' balancers against them, event by event
feelings    quantiles and errors, over all and over time
__main__    every scenario with every policy: figures, table, plots (plot.py, in the benchmark's venv)

The balancers are the agents' own (node_agent.balance), with ejection, retry and
budget as in an agent; only what they balance is a model.  Time is virtual and
all draws come from one seed: a run can be repeated to the last figure.
"""
