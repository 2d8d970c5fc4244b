"""FedAvg: the mean of the updates, weighted by examples (McMahan et al. 2017, arXiv:1602.05629).

Its state is an exact integer sum (engine.ring), eight bytes a parameter however many updates come, so the order of
updates and the grouping of partial sums change not a bit of the result.
"""

from broker.aggregate.rule import Rule
from engine import ring

FEDAVG = Rule(init=ring.empty, add=ring.add_all, merge=ring.merge, finish=ring.mean_step)
