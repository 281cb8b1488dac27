"""Lamina: starts containers before their image has arrived, without trusting who delivers it."""
