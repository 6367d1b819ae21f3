"""What a running process does, for whoever looks for the reason: profile, stacks, memory.

    profiler.py   samples this process's own threads, for a bounded time, when somebody asks
    stacks.py     the tasks as a tree, and the threads
    memory.py     what the kernel and the interpreter say of the memory
    process.py    the three of one process, as plain data
    routes.py     ``/debug/...`` on the operator's socket: of the agent and of its workers

Nothing here runs, and nothing but ``routes`` is even imported, before somebody asks.
Names of functions, files and lines are shown; never the value of a variable.
"""
