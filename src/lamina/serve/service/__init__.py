"""The mount service: one for each user, so that mounts outlive the death of what serves them.

Three processes, each of which may be killed at any moment:

* the **worker** has threads, opens images, fetches, verifies and answers the kernel;
* the **supervisor** talks to clients, keeps the records, and replaces the worker;
* the **holder** sleeps.  It has a copy of every descriptor and replaces the supervisor.

All that one of them needs to go on is inherited by fork, so a replacement costs no start of an
interpreter, and credentials are in memory only.
"""
