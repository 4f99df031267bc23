"""``-p tests.steady``: a session on a machine that is busy with other tests, where no figure is too noisy to stand.

Which figures a machine is too noisy to tell, and that ``--resume`` measures them again, has tests of its own, with
times that are given.
"""

import math

from harness.judge import spread

spread.MOST_SPREAD = math.inf
