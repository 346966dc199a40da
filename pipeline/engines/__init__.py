"""Who makes the shards of a run: this process, or workers on many machines. Each makes them by :mod:`pipeline.making`."""
