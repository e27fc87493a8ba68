"""Counts the accepted jobs of each client, and refuses those for which there is no room."""

import threading
from collections import Counter
from collections.abc import Sequence

from serve.clients.client import Client
from serve.engine.jobs import Job
from serve.errors import QueueFullError


class OpenJobs:
    """The numbers of jobs that were accepted and have not ended. Any thread may use it."""

    def __init__(self, slots: int, max_waiting: int, client_room: int) -> None:
        """
        Args:
            slots: number of jobs that run at a time.
            max_waiting: maximum number of jobs that wait for a slot.
            client_room: number of jobs that each client may have even if those of others fill the queue.
        """
        self._slots, self._max_waiting, self._client_room = slots, max_waiting, client_room
        self._lock = threading.Lock()
        self._of: Counter[Client] = Counter()
        self.total = 0

    def add(self, jobs: Sequence[Job], num_running: int) -> None:
        """Accepts either all of the jobs, which have one client, or none.

        Args:
            jobs: what the client asks for.
            num_running: number of jobs of this client that hold a slot.

        Raises:
            QueueFullError: the client has too many jobs waiting, or all clients together have.
        """
        client = jobs[0].client
        with self._lock:
            own, count = self._of[client], len(jobs)
            free = max(0, self._slots - self.total)
            if client.max_waiting is not None and own + count > num_running + free + client.max_waiting:
                raise QueueFullError(
                    f"too many completions of this client wait: {own - num_running} are waiting, expected at most "
                    f"{client.max_waiting}; retry later",
                    retry_after_s=1,
                )
            most = self._slots + self._max_waiting
            if self.total + count > most and own + count > self._client_room:
                raise QueueFullError(
                    f"the queue is full: {self.total} completions are running or waiting, expected at most {most} "
                    "(the options --slots and --max-waiting); retry later",
                    retry_after_s=1,
                )
            self._of[client] += count
            self.total += count

    def remove(self, job: Job) -> None:
        """Counts a job as ended."""
        with self._lock:
            self.total -= 1
            self._of[job.client] -= 1
            if not self._of[job.client]:
                del self._of[job.client]
