"""System calls that Python's standard library lacks, by ctypes.

Nothing here knows what an image is.  Constants keep the names of the kernel's headers; every
wrapper says which capability and kernel version it needs and which races its caller has to mind.
"""
