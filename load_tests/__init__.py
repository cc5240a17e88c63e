"""Load tests: how fast the engine is, as ratios to its peers, on the machine at hand.

Strategy: a scenario is a module with one function. The function measures runs in pairs, engine
against peer, and hands each to a `Recorder` as it ends. Processes, CPU and memory are measured in
one place for all scenarios. Nothing is judged by absolute times: machines differ, and the ratios of
one round hardly do.
"""
