"""What the benchmarks share: jobs of several ranks, steps timed in turn, the peers written by hand, results as JSON.

Machines are seldom idle, so the contestants take turns and are compared round by round: what slows one step down slows
its neighbours down too. CPU seconds, of all threads of all ranks, say how much work was done whatever else ran.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
