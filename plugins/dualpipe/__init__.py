"""DualPipe: pipelines that are fed from both ends.

schedule   what each rank does in a step, as data
"""
