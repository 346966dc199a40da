# A backend that is not there would keep Matplotlib from being loaded, and a notebook's is inherited by the programs it starts;
# files need none. Whoever wants a window asks for it again.
import os

_backend = os.environ.pop("MPLBACKEND", None)
import matplotlib as matplotlib  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend
