"""SPIFFE Workload API: programs of our pods get the identity that their connections have.

endpoint      the edge: a unix socket, and who may connect to it how often
process       who calls: the process, as the kernel vouches for it
caller        which workload that is, looked up afresh whenever it matters
callers       bounds for each workload          budget    how much of our time it may cost
service       what all connections share; everything that needs HTTP/2 is imported through it
conversation  one connection: reads, calls, answers       changes     wakes its streams
grpc          HTTP/2 and gRPC, sans-I/O (grpc_request, grpc_status)
messages      the Workload API's messages       protobuf  their encoding
answers       what each method answers, from SVIDs and trust
jwt_svids     tokens from the CA                jwt_cache kept until half of their life
statistics    for the metrics

Nothing here is imported unless ``[workload_api] enabled``, and HTTP/2 only when
the first caller connects: with what comes along it is 2.3 MB that an agent
which nobody asks does not need.
"""
