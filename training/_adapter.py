import numpy as np
import torch

import agents as A
import envs as E
from agents.learner import make_learner as old_learner
from agents.sac import SAC
from envs.vec import Step

SAC.epsilon = lambda self, step: None


class Stack:
    def __init__(self, agents):
        self.agents = list(agents)

    def observe(self, obs):
        for a, o in zip(self.agents, np.split(obs, len(self.agents))):
            a.observe(o)

    def act(self, obs, step):
        return np.concatenate([a.act(o, step) for a, o in zip(self.agents, np.split(obs, len(self.agents)))])


class Rep:
    def __init__(self, rs):
        self.rs = rs

    def run(self, k):
        return self.rs[k]

    def add(self, *args):
        for r, parts in zip(self.rs, zip(*[np.split(np.asarray(a), len(self.rs)) for a in args])):
            r.add(*parts)


def make_replay(config, o, a, g, d, k):
    return Rep([A.make_replay(config, o, a, g, d, k - 1 - i) for i in range(k)])


class L:
    def __init__(self, l):
        self.l = l

    def learn(self, n):
        b, losses = self.l.learn(n)
        return b, {k: torch.stack([x[k] for x in losses]) for k in losses[0]}


def make_learner(stack, replay, gens, config):
    return L(old_learner(stack.agents, replay.rs, gens, config))
