"""Processes of one gloo group on this machine, forked from a server that has imported everything already.

``run(2, function, argument)`` calls a function of a test module in each, as ``function(rank, argument)``, under an
initialised default group. Everything ends within a limit, whatever the processes do: what hangs fails its test.
"""

import dataclasses
import faulthandler
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import wait

import pytest
import torch

import chaos_ext

PRELOADED = ["pytest", "chaos_ext._contents", "torch.distributed.fsdp", "oracles", "ranks"]
PACKAGE = chaos_ext.__file__
LIMIT = 100.0  # s, from which on processes are killed and their test fails


@dataclasses.dataclass
class Outcome:
    """What one process did: it returned a value, raised an error, or came to another end (killed: code -9)."""

    value: object = None
    error: BaseException | None = None
    seconds: float = 0.0
    code: int | None = None


def run(size, function, *args, limit=LIMIT, check=True):
    """What ``function(rank, *args)`` returned in each of ``size`` processes; with ``check=False`` their outcomes."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")  # read when the server starts
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # which chaos_ext this is
        pairs = [server.Pipe() for _ in range(size)]
        jobs = [
            server.Process(target=_child, args=(r, size, folder, limit, function, args, theirs, PACKAGE), daemon=True)
            for r, (_, theirs) in enumerate(pairs)
        ]
        for job in jobs:
            job.start()
        for _, theirs in pairs:
            theirs.close()
        outcomes = _outcomes(jobs, [ours for ours, _ in pairs], limit, function.__name__)
    if not check:
        return outcomes
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None:
            raise AssertionError(f"rank {rank} of {size} raised {outcome.error!r}") from outcome.error
        assert outcome.code is None, f"rank {rank} of {size} ended with exit code {outcome.code}"
    return [outcome.value for outcome in outcomes]


def _outcomes(jobs, connections, limit, name):
    """Of every process; all of them have ended afterwards."""
    found, end = {}, time.monotonic() + limit
    try:
        while len(found) < len(jobs):
            ready = wait([c for c in connections if c not in found], max(0.0, end - time.monotonic()))
            for c in ready:
                found[c] = _received(c, jobs[connections.index(c)])
            missing = [r for r, c in enumerate(connections) if c not in found]
            if not ready:
                _kill([job for c, job in zip(connections, jobs) if c not in found])
                pytest.fail(f"{name}: processes {missing} had not ended after {limit:g} s (their stacks: above)")
    finally:
        for c in connections:
            c.close()  # the processes go on until now: others may still talk to them
        for job in jobs:
            job.join(5)
        _kill(jobs)
    return [found[c] for c in connections]


def _kill(jobs):
    for job in jobs:
        if job.is_alive():
            job.kill()
            job.join()


def _received(connection, job):
    try:
        return pickle.loads(connection.recv_bytes())
    except EOFError:
        job.join(5)
        return Outcome(code=job.exitcode)


def _child(rank, size, folder, limit, function, args, connection, package):
    assert package == PACKAGE, f"the server has imported {PACKAGE}"
    faulthandler.dump_traceback_later(max(1.0, limit - 2), exit=False)
    torch.set_num_threads(1)
    begun = time.monotonic()
    try:
        store = torch.distributed.FileStore(os.path.join(folder, "store"), size)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=max(limit, 60.0))
        )
        outcome = Outcome(value=function(rank, *args))
    except Exception as e:
        traceback.print_exc()
        outcome = Outcome(error=e)
    outcome.seconds = time.monotonic() - begun
    connection.send_bytes(_packed(outcome))
    connection.poll(limit)
    sys.stderr.flush()
    os._exit(0)  # without the ends of torch's threads, some of which may wait for somebody who is gone


def _packed(outcome):
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    except Exception as e:
        outcome = Outcome(error=RuntimeError(f"{outcome.value!r} {outcome.error!r} cannot be pickled: {e}"))
        data = pickle.dumps(outcome)
    return data
