"""What the benchmarks share: hosts in network namespaces, a registry, peers, reports."""
