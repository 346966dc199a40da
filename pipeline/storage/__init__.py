"""Addresses, ``s3://bucket/folder``, where the rest of the program has paths: what fsspec opens, and the only wing that knows it.

Stands below images and store, which read and write by it. Nothing of it is loaded for a run on this machine's own disks, but for
:mod:`~.address`, which tells the two apart.
"""
