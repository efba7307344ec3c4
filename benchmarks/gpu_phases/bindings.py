"""Does mexma_rt/backends/cuda.py hold on the real cuda-bindings: pinned memory, copies, events, capture, errors, release?

With --smoke the tests' stand-in of CUDA takes the place of the module.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from telling import flags, say

from mexma_rt.backends.cuda import Cuda
from mexma_rt.backends.nvidia import device_sm, load_cuda
from mexma_rt.errors import BackendError

COUNT, TIMES = 1 << 16, 100


def main() -> None:
    args = flags(__doc__).parse_args()
    if args.smoke:
        sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "runtime"))
        from standin_gpu import Device, cuda_runtime

        runtime = cuda_runtime(Device())
    else:
        runtime = load_cuda("tensorrt")
        say(what="compute capability", sm=device_sm())
    cuda = Cuda(runtime)
    there = cuda.memory(COUNT * 4)
    sent, back = (cuda.pinned(COUNT, np.float32) for _ in range(2))

    def copies() -> None:
        cuda.upload(sent, there)
        cuda.download(there, back)

    sent[:], back[:] = np.arange(COUNT), -1
    copies()
    cuda.synchronize()
    say(what="copies", equal=bool((sent == back).all()))
    graph = cuda.capture(copies)
    sent[:], back[:] = np.arange(COUNT) * 2, -1
    cuda.launch(graph)
    cuda.synchronize()
    say(what="captured copies", equal=bool((sent == back).all()))
    sent[:], back[:] = np.arange(COUNT) * 3, -1
    mark = cuda.event()
    copies()
    cuda.record(mark)
    cuda.wait(mark)
    say(what="copies behind an event", equal=bool((sent == back).all()))
    for name, work in (("calls", copies), ("graph", lambda: cuda.launch(graph))):
        started = time.perf_counter()
        for _ in range(TIMES):
            work()
            cuda.synchronize()
        say(what=f"256 KiB up and down by {name}", microseconds=round((time.perf_counter() - started) / TIMES * 1e6, 1))
    try:
        cuda.memory(1 << 50)
        say(what="too much memory", error=None)
    except BackendError as error:
        say(what="too much memory", error=str(error))
    cuda.release()
    cuda.release()
    say(what="released")


if __name__ == "__main__":
    main()
