"""The whole of Assent in one process, on virtual time, against every fault that a seed can draw.

    python -m tests.simulation run --seeds 0-99 [--jobs 2]    violations, speed, what was done
    python -m tests.simulation replay --seed 17 -v            the same run again, event by event
    python -m tests.simulation mutants                        planted bugs, and who catches them

What runs is the code that runs in production: `cluster.node.Node` with everything in it, the SDK,
the client library; in one seed of eight aiohttp's client and server, too, in the others messages
in their place (`light_client`, `light_server`), over the same connections. What is simulated lies
behind their seams: the event loop (`loop`), the network (`network`), the disks (`disk`), a
participant's store (`store`), wall clocks. Substituted beside the seams is what `patches` lists.
"""
