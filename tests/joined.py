"""One of several processes that train nothing: how they learn of each other's end.

python tests/joined.py TIMEOUT WHAT
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from light_jax.parallel.hosts import initialize, taking_part, together
from light_llm import exits
from light_llm.errors import UserError
from light_llm.printing import tell


def do(what: str) -> int:
    print("imported", flush=True)
    sys.stdin.readline()  # a busy machine imports JAX in one process much later than in another
    initialize(float(sys.argv[1]))
    print("joined", flush=True)
    with taking_part():
        if what == "fails":
            raise UserError("its shard is bad")
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "chatters":  # as a library in C++ does, until the process ends
            threading.Thread(target=chatter, daemon=True).start()
        if what in ("waits", "chatters"):  # as for a collective that another process never enters
            while True:
                time.sleep(60)
        if what == "compiles":  # no line of Python runs in the main thread, for long
            ctypes.CDLL(None).usleep(int(1.5e6 * float(sys.argv[1])))
        if what == "locks":  # nor in any other
            ctypes.PyDLL(None).usleep(int(0.5e6 * float(sys.argv[1])))
        together(lambda: None)
        if what == "lingers":  # the interpreter waits for a thread that does not end
            threading.Thread(target=time.sleep, args=(10**6,)).start()
    return 0


def chatter() -> None:
    while True:
        os.write(2, b"F1128 client.h:80] Terminating process\n")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.argv, what = sys.argv[:2], sys.argv[2]
    try:
        code = do(what)
    except UserError as error:
        tell(f"joined: {error}")
        code = 2
    exits.over(code)
    sys.exit(code)
