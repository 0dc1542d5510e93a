"""``taskfarm doctor``: say whether this machine is fit to run a job, and if not, what is to be done.

`local` looks at this process's environment and host, `job` runs a real job whose ranks look at themselves
(`taskfarm.transport.inspection`), `ranks` judges what they found. Each check takes facts and returns findings, so
each can be tested by facts that are wrong.
"""
