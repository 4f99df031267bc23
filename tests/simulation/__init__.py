"""How often the harness's own verdicts are wrong, by simulation: its decision code over figures whose truth is known.

``tox run -e simulate`` writes results/simulation.md. Nothing here decides anything: samples are drawn, and what
harness.judge says of them is counted.
"""
