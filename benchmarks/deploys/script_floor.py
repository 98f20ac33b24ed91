"""The honest minimum: two durable rows, one thread that imports requests, two POSTs on one connection."""

import os
import queue
import sqlite3
import threading
import time

jobs = queue.SimpleQueue()


def send():
    import requests

    url = os.environ["BENCH_URL"] + "/api/v2/engineering-insights/deployment-events"
    with requests.Session() as session:
        while (kind := jobs.get()) is not None:
            event = {
                "projectKey": "default",
                "environmentKey": "production",
                "applicationKey": "billing-service",
                "version": os.environ["BENCH_RUN"],
                "eventType": kind,
            }
            headers = {"Authorization": "api-bench", "LD-API-Version": "beta"}
            session.post(url, json=event, headers=headers, timeout=10).raise_for_status()


sender = threading.Thread(target=send)
sender.start()
box = sqlite3.connect(os.environ["HOME"] + "/floor.db", isolation_level=None)
box.execute("PRAGMA journal_mode = WAL")
box.execute("PRAGMA synchronous = FULL")
box.execute("CREATE TABLE IF NOT EXISTS events (kind TEXT)")


def tell(kind):
    box.execute("INSERT INTO events VALUES (?)", (kind,))
    jobs.put(kind)


tell("started")
time.sleep(float(os.environ["BENCH_WORK"]))
tell("finished")
jobs.put(None)
sender.join()
box.close()
