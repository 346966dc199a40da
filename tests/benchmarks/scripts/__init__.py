"""The whole job as careful users write it today, one script a program. Each reads a folder and writes one HDF5 file.

A script prepares everything once (its model, its best batch size, a first call) and is then timed from the first image it
reads until its file is closed.
"""
