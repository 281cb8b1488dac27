"""Messages of containerd's gRPC services, generated from the ``.proto`` files here (docs/adr/0022).

``make protos`` writes them anew.
"""
