"""Damages files of small runs at random and reads them, in processes that may crash."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.reader import open_run

from .stored_runs import make_spec, make_values, write_run

NATIVE_SIZES = {i: (3 + i, 9 - i) for i in range(6)}
SECONDS_A_FILE = 20


def everything(folder: Path) -> Any:
    with open_run(folder) as run:
        table = {name: run.images[name].tolist() for name in run.images}
        rows = {layer: [run[layer][row].tobytes() for row in range(len(run))] for layer in run.layers}
        return table, rows, [run.row(key) for key in table["key"]], {name: str(value) for name, value in run.attributes.items()}


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Gives a file with a bit turned over, some bytes or a number changed, or without its end."""
    data = bytearray(content)
    # Half of them at the beginning, where HDF5 keeps what it believes first.
    most = len(data) if dice.random() < 0.5 else min(len(data), 4096)
    kind = dice.randrange(10)
    if kind < 4:
        data[dice.randrange(most)] ^= 1 << dice.randrange(8)
    elif kind < 6:
        for _ in range(dice.randrange(1, 9)):
            data[dice.randrange(most)] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    elif kind < 9:
        place, size = dice.randrange(most), dice.choice([1, 2, 4, 8])
        number = dice.choice([b"\xff" * size, bytes(size), b"\xff" * (size - 1) + b"\x7f", dice.randbytes(size)])
        data[place : place + size] = number
    else:
        del data[dice.randrange(len(data)) :]
    return bytes(data[: len(content)])


def _read(folders: list[Path], jobs: range, seed: int, replies: Connection) -> None:
    expected = {folder: everything(folder) for folder in folders}
    for job in jobs:
        dice = random.Random(seed * 1_000_003 + job)
        folder = dice.choice(folders)
        path = dice.choice(sorted(folder.rglob("*.h5")))
        content = path.read_bytes()
        path.write_bytes(damaged(content, dice))
        signal.alarm(SECONDS_A_FILE)
        try:
            result = "same" if everything(folder) == expected[folder] else f"other values {job}"
        except StoreError as error:
            result = "one line" if str(error).isprintable() and ". Expected " in str(error) else f"not one line {job}: {error}"
        except BaseException as error:
            result = f"{type(error).__name__} {job}: {error}"
        signal.alarm(0)
        path.write_bytes(content)
        replies.send(result)


def fuzz(folder: Path, mutations: int, seed: int) -> Counter[str]:
    """Gives how many mutated files came to what; ``lost``: the process that read it crashed or hung."""
    for name, spec, native in (
        ("small", make_spec(10, {"conv1_1": (5, 4, 3), "relu4_1": (12, 12, 3)}), None),
        ("native", make_spec(6, {"relu4_1": None, "b": None}, images_per_shard=4), NATIVE_SIZES),
        ("uncompressed", make_spec(10, dtype="float16", compression="none"), None),
    ):
        write_run(folder / "good" / name, spec, failed=[1], values=make_values(spec, native))
    found: Counter[str] = Counter()
    done = turns = 0
    while done < mutations:
        # Of a process that was lost, files are left damaged.
        turns += 1
        copies = [folder / str(turns) / name for name in ("small", "native", "uncompressed")]
        for copy in copies:
            copy.parent.mkdir(exist_ok=True)
            _copy(folder / "good" / copy.name, copy)
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=_read, args=(copies, range(done, mutations), seed, send))
        process.start()
        send.close()
        try:
            while True:
                found[receive.recv()] += 1
                done += 1
        except EOFError:
            process.join()
        if process.exitcode:
            found["lost"] += 1
            done += 1
    return found


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
