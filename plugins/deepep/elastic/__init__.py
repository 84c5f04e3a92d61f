"""`ElasticBuffer`: one dispatch and one combine for all sizes, and other ways to move tensors between ranks.

buffer      `ElasticBuffer`, with the original's names, arguments and results
handle      what a dispatch leaves for combine and for dispatches of the same routing
experts     dispatch and combine: normal mode, and one row for each expert if that is asked for
routing     where rows go and come from, as numbers of rows
reference   the specification: what one process computes that has all ranks' inputs
sizes       how much memory, how many processors
tensors     all-gather in sessions, send and receive in a ring, rows fetched from other ranks
"""
