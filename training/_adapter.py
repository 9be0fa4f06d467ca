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


class Env:
    def __init__(self, config, k):
        self.e = [E.make_training_env(config) for _ in range(k)]

    def __getattr__(self, n):
        return getattr(self.e[0], n)

    def reset(self, seeds):
        return np.concatenate([e.reset(s) for e, s in zip(self.e, seeds)])

    def random_action(self):
        return np.concatenate([e.random_action() for e in self.e])

    def step(self, action):
        ss = [e.step(a) for e, a in zip(self.e, np.split(action, len(self.e)))]
        eps = [
            ep._replace(env_index=ep.env_index + i * self.e[0].num_envs)
            for i, s in enumerate(ss)
            for ep in s.episodes
        ]
        return Step(*[np.concatenate([s[j] for s in ss]) for j in range(5)], eps)

    def state_dict(self, k):
        return self.e[k].state_dict()

    def load_state_dict(self, states):
        return np.concatenate([e.load_state_dict(s) for e, s in zip(self.e, states)])

    def close(self):
        for e in self.e:
            e.close()


make_training_env = Env


class L:
    def __init__(self, l):
        self.l = l

    def learn(self, n):
        b, losses = self.l.learn(n)
        return b, {k: torch.stack([x[k] for x in losses]) for k in losses[0]}


def make_learner(stack, replay, gens, config):
    return L(old_learner(stack.agents, replay.rs, gens, config))
