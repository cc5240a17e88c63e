"""Load tests: how fast the engine is, as ratios to its peers, on the machine at hand.

Strategy: a scenario is a module with one function that measures runs in pairs, engine against peer,
and hands each to a `Recorder` as it ends; processes, CPU and memory are measured in one place for
all of them. Nothing is judged by absolute times: machines differ, ratios of one round hardly do.
"""
