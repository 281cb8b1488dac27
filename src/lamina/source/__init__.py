"""Where stored bytes come from: sources, retries, single flight, the sizes of requests."""
