"""Containers that last: started and left alone, listed, entered, stopped, and their ends known.

Nobody serves all of them.  Beside each is a supervisor, which writes its log and waits for its end,
and a guardian, which takes the supervisor's place if that is killed.  All else is on disk, and in
the state of the runtime, which its own commands show.
"""
