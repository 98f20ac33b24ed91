import os
import time

from naive import tell

tell("started")
time.sleep(float(os.environ["BENCH_WORK"]))
tell("finished")
