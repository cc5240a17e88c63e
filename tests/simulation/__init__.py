"""The protocol's test: real engines, a simulated source and bucket, virtual time, an adversary, a
monitor.

    python -m simulation --seed N --verbose      one schedule, with its trace
    python -m simulation --schedules N           many, with the windows that were hit
    python -m simulation --mutants               take every rule away in turn; each must be caught

`virtual_loop` is time, `store` and `source` the outside world, `engines` the processes under
test, `monitor` what must hold, `world` the scheduler and adversary, `mutants` the rules and how
to break them.
"""
