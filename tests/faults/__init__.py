"""The fault suite: real readers over real mounts while everything else breaks.

``python -m tests.faults --faults 10000`` (``make faults``) serves an image from a registry that
lies, kills servers, fills disks and puts old and forged files into node stores, while reader
processes compare every byte with the source tree.  It fails for a wrong byte and for a read that
never ends.  Parts: :mod:`.sample` (the images), :mod:`.network` (the registry), :mod:`.old_files`
(node stores), :mod:`.reader` (the reading processes), :mod:`.ways` (how they read), :mod:`.reading`
(what came of one), :mod:`.station` (one mount with all of that), :mod:`.containers` (one of
containers), :mod:`.run` (the command).
"""
