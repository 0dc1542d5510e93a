"""A farm of 500 tasks of which two workers are killed at random times; the seed is the first argument."""

import os
import random
import signal
import sys
import threading
import time

from tf_segments import note_segments

from taskfarm import Executor
from taskfarm.runtime.session import current


def work(x):
    time.sleep(0.004)
    return x * x


with Executor() as executor:
    note_segments()
    pids = {peer.rank: peer.pid for peer in current().peers if peer.rank}
    choose = random.Random(int(sys.argv[1]))
    victims = choose.sample(sorted(pids), 2)
    times = sorted(choose.uniform(0, 0.5) for _ in victims)
    began = time.monotonic()

    def kill() -> None:
        for victim, when in zip(victims, times, strict=True):
            time.sleep(max(0.0, began + when - time.monotonic()))
            os.kill(pids[victim], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    results = list(executor.map(work, range(300)))
    results += [future.result() for future in [executor.submit(work, x) for x in range(300, 500)]]
    killer.join()
    assert results == [x * x for x in range(500)]
print(f"all right without {sorted(victims)}")
