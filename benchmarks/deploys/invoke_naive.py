import os

from invoke import task
from naive import tell


@task
def begin(c):
    tell("started")


@task
def end(c):
    tell("finished")


@task(pre=[begin], post=[end])
def deploy(c):
    c.run(f"sleep {os.environ['BENCH_WORK']}")
