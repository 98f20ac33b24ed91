import subprocess
import sys

from naive import tell

tell("started")
status = subprocess.run(["true"]).returncode
tell("finished")
sys.exit(status)
