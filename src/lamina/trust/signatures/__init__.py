"""Signatures of images, and the policy that asks for them."""
