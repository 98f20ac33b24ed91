import os
import time

time.sleep(float(os.environ["BENCH_WORK"]))
