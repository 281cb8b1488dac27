"""HTTP/1.1 for clients: connections, TLS, proxies, deadlines. Knows no registry."""
