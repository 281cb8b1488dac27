"""The protocol of trustee's key broker service: client, key provider of ocicrypt, and a broker."""
