"""What `make bench` measures: this program against the programs that users write today, in turns, on one machine.

Each module measures one claim of the README, or some: a function takes :class:`.table.Bench` and yields lines. Rivals run in
processes of their own (:mod:`tests.benchmarks.sides`), never two at once.
"""
