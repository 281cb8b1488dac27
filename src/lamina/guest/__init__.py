"""What runs inside of a confidential guest: it proves itself, gets keys, opens images."""
