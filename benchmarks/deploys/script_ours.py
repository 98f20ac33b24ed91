import os
import time

from ld_deploy_hooks import deployment

with deployment("billing-service", version=os.environ["BENCH_RUN"]):
    time.sleep(float(os.environ["BENCH_WORK"]))
