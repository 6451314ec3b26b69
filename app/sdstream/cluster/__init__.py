"""Workers on other machines, which form a Ray cluster (the optional extra ``cluster``).

Only ``driver`` and ``node`` need Ray; the server imports ``driver`` only with ``--cluster``.
"""
