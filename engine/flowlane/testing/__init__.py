"""Testing with flowlane: a virtual clock, so that an hour of retries takes a millisecond and a seed repeats any run.

``simulate(plan, lanes, outcome)`` runs one plan; ``Simulation`` runs several on shared lanes, with requests to cancel or
drain, late news and shuffled order. Nothing here starts a thread, waits or reads a clock.
"""

from flowlane.testing.simulation import Attempt, Outcome, SimulatedRun, Simulation, Stalled, simulate

__all__ = ["Attempt", "Outcome", "SimulatedRun", "Simulation", "Stalled", "simulate"]
