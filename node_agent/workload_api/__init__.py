"""SPIFFE Workload API: programs of our pods get the identity that their connections have.

server     the edge: a unix socket, one task a connection and a call
process    who calls: the process, as the kernel vouches for it
grpc       HTTP/2 and gRPC, sans-I/O
messages   the Workload API's messages   protobuf  their encoding
answers    what each method answers, from SVIDs and trust
jwt_cache  JWT-SVIDs, kept until half of their life
budget     how much one caller may cost

Nothing here is imported unless ``[workload_api] enabled``, and HTTP/2 only when
the first caller connects: it is 1.3 MB that an agent nobody asks does not need.
"""
