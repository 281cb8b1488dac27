"""Helpers that tests share: images, peers, servers, fakes."""
