"""Looking into an agent: imagined rollouts, the frames they resemble, and how far off they are.

Nothing here moves a weight, a statistic or a random stream of the run.
"""
