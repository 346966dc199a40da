"""Who makes the shards of a run: this process, or tasks on many machines. Each makes them by :mod:`pipeline.extract`.

An engine is a function that opens it for a run, a context manager; what it yields makes what is missing.
"""
