"""Killing whole runs, and finding out what became of them without asking the engine.

work.py    the workflow that is killed; each task writes to a journal of its own when it starts and when it ends
checker.py reads that journal, and the database by SQL of its own: nothing of the engine's is imported
trial.py   lives of `flow` in a folder of their own: started, killed, looked at, started again
dying.py   an engine whose store kills the process at its n-th call, before or after
"""
