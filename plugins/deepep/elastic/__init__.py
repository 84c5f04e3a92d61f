"""`ElasticBuffer`: one dispatch and one combine for all sizes, and other ways to move tensors between ranks.

buffer      `ElasticBuffer`, with the original's names, arguments and results
experts     `EPHandle`, dispatch and combine: normal mode, and one row for each expert if that is asked for
tensors     all-gather in sessions, send and receive in a ring, rows fetched from other ranks
reference   the specification: what one process computes that has all ranks' inputs
"""
